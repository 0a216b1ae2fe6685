"""What every writer works with: one image, its dice, the wordings, and the draft of a record."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medisee.data.sa_med2d import ImageRecord
from medisee.engine import language, rules
from medisee.engine.clues import Shape
from medisee.entities import Entity
from medisee.structures import QARound, RefusalReason

__all__ = ["Draft", "Perspective", "Scene", "agree", "wordings"]

Kind = Literal["implicit", "referring", "absent", "several", "round"]
Perspective = Literal["attribute", "location"]

_SINGULAR, _PLURAL = ("is", "it", "it"), ("are", "they", "them")


@dataclass(frozen=True)
class Draft:
    """A question with its answer; `labels` are the targets in the order of the answer."""

    kind: Kind
    question: str
    answer: str
    labels: tuple[str, ...] = ()
    perspective: Perspective | None = None
    history: list[QARound] = field(default_factory=list)
    refusal: RefusalReason | None = None

    @property
    def key(self) -> str:
        """What makes two drafts of an image the same: the words, whatever their case."""
        rounds = (turn.question for turn in self.history)
        return "|".join((*rounds, self.question)).lower().strip(" .?!")


@dataclass
class Scene:
    """One image as the writers see it: shapes of the targets, knowledge, and the dice."""

    image: ImageRecord
    shapes: Mapping[str, Shape]
    entities: Mapping[str, Entity]
    weights: Mapping[str, float]
    rng: random.Random

    @classmethod
    def of(
        cls,
        image: ImageRecord,
        masks: Mapping[str, NDArray[np.bool_]],
        entities: Mapping[str, Entity],
        weights: Mapping[str, float],
        rng: random.Random,
    ) -> Scene:
        """The scene of an image; labels with an empty mask or without an entity are left out."""
        shapes = {label: Shape.of(mask) for label, mask in masks.items() if label in entities}
        seen = {label: shape for label, shape in shapes.items() if shape is not None}
        return cls(image, seen, entities, weights, rng)

    @cached_property
    def absent(self) -> Mapping[RefusalReason, list[Entity]]:
        """What cannot be in this image."""
        known = [self.entities[label] for label in self.weights]
        return rules.absent_entities(self.image, (*known, *rules.elsewhere()))

    def pick_label(self) -> str:
        """A label of the image, rare categories more often."""
        labels = list(self.shapes)
        return self.rng.choices(labels, [self.weights[label] for label in labels])[0]

    def wording(self, group: str, most: int | None = None) -> str:
        """A template of `wordings.yaml` that this split may use, of `most` words at most.

        Where none is so brief, one of the briefest.
        """
        templates = _templates(group, self.image.split)
        if most is not None:
            limit = max(most, min(map(_own_words, templates)))
            templates = [text for text in templates if _own_words(text) <= limit]
        return self.rng.choice(templates)

    def image_word(self) -> str:
        """A word for this kind of image, the plain ones more often."""
        words = wordings()["modality_words"].get(
            rules.family(self.image.modality), wordings()["modality_words"]["other"]
        )
        return self.rng.choices(words, [1 / (n + 1) for n in range(len(words))])[0]

    def explanation(self, label: str) -> str:
        """One explaining sentence about the entity."""
        return self.rng.choice(self.entities[label].explanation)

    def fill(self, template: str, **phrases: str) -> str:
        """Puts in the image word and `phrases`; "{List}" is "{list}" opening a sentence."""
        word = self.image_word()
        text = template.replace("{am}", language.with_indefinite(word)).replace("{m}", word)
        for key, phrase in phrases.items():
            text = text.replace("{" + key + "}", phrase)
            text = text.replace("{" + key.capitalize() + "}", language.sentence_case(phrase))
        return text


def agree(text: str, key: str, phrase: str) -> str:
    """Puts the phrase in for {key}, and what must agree with it for {is}, {it}, {them}."""
    many = language.is_plural(phrase)
    for slot, word in zip(("is", "it", "them"), _PLURAL if many else _SINGULAR, strict=True):
        text = text.replace("{" + slot + "}", word)
        text = text.replace("{" + slot.capitalize() + "}", word.capitalize())
    text = text.replace("{" + key + "}", phrase)
    return text.replace("{" + key.upper() + "}", language.sentence_case(phrase))


def wordings() -> Any:
    """The content of `wordings.yaml`."""
    return rules.read_yaml("medisee.engine", "wordings.yaml")


@lru_cache(maxsize=1024)
def _own_words(template: str) -> int:
    """How many words the template adds to what is put into it."""
    return sum(not re.fullmatch(r"\W*\{(?:d|D|e|q|Q|clue|Clue)\}\W*", w) for w in template.split())


@lru_cache(maxsize=64)
def _templates(group: str, split: str) -> Sequence[str]:
    entry = wordings()
    for part in group.split("."):
        entry = entry[part]
    return rules.reserved_share(entry, split)
