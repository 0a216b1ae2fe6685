"""How each kind of question is asked and answered, about one image."""

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
from medisee.engine.clues import Shape, find_clues
from medisee.entities import Entity
from medisee.structures import QARound, RefusalReason

__all__ = [
    "Draft",
    "Scene",
    "absent",
    "follow_up",
    "implicit",
    "referring",
    "referring_question",
    "several",
]

Kind = Literal["implicit", "referring", "absent", "several", "round"]
Perspective = Literal["attribute", "location"]

_RARE = 0.25  # weight of a structure without training images: as one with 16 of them
_SINGULAR, _PLURAL = ("is", "it", "it"), ("are", "they", "them")
# An implicit question about looks alone may fit something else in an image without its target.
_LOOKS = re.compile(
    r"\b(bright|dark|white|black|gr[ae]y|pale|red|shad\w*|spots?|dots?|blobs?|patch(es)?|round|oval"
    r"|circles?|lines?|streaks?|bands?|rings?|zone|area|abnormal|lump|mass|growth)\b",
    re.IGNORECASE,
)
_FRAMES_FOR_SHORT = re.compile(r"\{d\} (\{is\}|outlined|marked)")
_LEVEL = re.compile(r"^([CTL])(\d+) (vertebral body|vertebra)$")
_DISC = re.compile(r"^L(\d)-(?:L\d|S1) intervertebral disc$")
_FIRST_PERSON = re.compile(r"\b(I|I'm|I am|[Mm]y|[Ww]e|[Oo]ur)\b")


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

    def wording(self, group: str) -> str:
        """A template of `wordings.yaml` that this split may use."""
        return self.rng.choice(_templates(group, self.image.split))

    def image_word(self) -> str:
        """A word for this kind of image, the plain ones more often."""
        words = _wordings()["modality_words"].get(
            rules.family(self.image.modality), _wordings()["modality_words"]["other"]
        )
        return self.rng.choices(words, [1 / (n + 1) for n in range(len(words))])[0]

    def explanation(self, label: str) -> str:
        """One explaining sentence about the entity."""
        return self.rng.choice(self.entities[label].explanation)


def referring(scene: Scene) -> Draft | None:
    """A question that names its target."""
    label = scene.pick_label()
    question = _name_question(scene, scene.entities[label])
    return Draft("referring", question, scene.explanation(label), (label,))


def implicit(scene: Scene) -> Draft | None:
    """A question that tells its target by what it is, does or looks like, or where it lies."""
    label = scene.pick_label()
    located = scene.rng.random() < 0.3
    question = _implicit_question(scene, scene.entities[label], label if located else None)
    if question is None:
        return None
    perspective: Perspective = "location" if located else "attribute"
    return Draft("implicit", question, scene.explanation(label), (label,), perspective)


def several(scene: Scene) -> Draft | None:
    """Two or three targets in one question."""
    if len(scene.shapes) < 2:
        return None
    pair = _side_pair(scene)
    labels: tuple[str, ...]
    phrase: str | None
    if pair is not None and scene.rng.random() < 0.4:
        labels, phrase = pair
    else:
        number = 3 if len(scene.shapes) > 2 and scene.rng.random() < 0.3 else 2
        labels = tuple(_distinct_labels(scene, number))
        phrase = _listed(scene, labels)
    if phrase is None:
        return None
    question = _fill(scene, scene.wording("several"), list=phrase)
    answer = " ".join(scene.explanation(label) for label in labels)
    return Draft("several", language.casual(question, scene.rng), answer, labels)


def follow_up(scene: Scene) -> Draft | None:
    """One or two earlier rounds, then a question that builds on them."""
    label = scene.pick_label()
    special = _relation_to_earlier(scene, label)
    question: str | None
    if special is not None and scene.rng.random() < 0.6:
        earlier, question = special
        history = [_round(scene, earlier)]
    else:
        history = _history(scene, label)
        question = _follow_up_question(scene, scene.entities[label])
    if question is None:
        return None
    question = language.casual(question, scene.rng)
    return Draft("round", question, scene.explanation(label), (label,), history=history)


def absent(scene: Scene) -> Draft | None:
    """A question that has no right target in this image."""
    reason = scene.rng.choices(
        (
            RefusalReason.NOT_IN_VIEW,
            RefusalReason.WRONG_MODALITY,
            RefusalReason.NOT_MEDICAL,
            RefusalReason.UNCLEAR,
        ),
        (0.48, 0.22, 0.15, 0.15),
    )[0]
    if reason in (RefusalReason.NOT_MEDICAL, RefusalReason.UNCLEAR):
        return _off_topic(scene, reason)
    if reason is RefusalReason.WRONG_MODALITY and scene.rng.random() < 0.5:
        return _beyond_limits(scene)
    candidates = scene.absent[reason]
    if not candidates:
        return None
    # Common categories more often, lest being asked for at all tells that something is there.
    weights = [1 / scene.weights.get(entity.name, _RARE) for entity in candidates]
    entity = scene.rng.choices(candidates, weights)[0]
    named = scene.rng.random() < 0.5
    question = _name_question(scene, entity) if named else _implicit_question(scene, entity, None)
    if question is None:
        return None
    return Draft("absent", question, _refusal(scene, reason, entity), refusal=reason)


def _off_topic(scene: Scene, reason: RefusalReason) -> Draft:
    lists = rules.read_yaml("medisee.entities", "off_topic.yaml")
    question = scene.rng.choice(rules.reserved_share(lists[reason.value], scene.image.split))
    answer = _fill(scene, scene.rng.choice(_wordings()["refusals"][reason.value]))
    return Draft("absent", language.casual(question, scene.rng), answer, refusal=reason)


def _beyond_limits(scene: Scene) -> Draft | None:
    choices = rules.limit_questions(scene.image, scene.image.split)
    if not choices:
        return None
    question, because = scene.rng.choice(choices)
    answer = scene.rng.choice(_wordings()["refusals"]["limits"]).replace("{because}", because)
    reason = RefusalReason.WRONG_MODALITY
    return Draft("absent", language.casual(question, scene.rng), answer, refusal=reason)


def _refusal(scene: Scene, reason: RefusalReason, entity: Entity) -> str:
    names, parts = _wordings()["modality_names"], _wordings()["body_part_names"]
    kind = names.get(rules.family(scene.image.modality), names["other"])
    part = parts.get(scene.image.body_part, scene.image.body_part)
    name = language.spoken(entity.name)
    text = scene.rng.choice(_wordings()["refusals"][reason.value])
    text = text.replace("{lies}", "lie" if language.is_plural(name) else "lies")
    text = text.replace("{part}", part).replace("{am}", language.with_indefinite(kind))
    return _agree(text.replace("{m}", kind), "x", language.with_article(name))


def referring_question(image: ImageRecord, entity: Entity, rng: random.Random) -> str:
    """A cleanly typed question that names the entity, in wordings of the image's split."""
    return _named(Scene(image, {}, {}, {}, rng), entity)


def _name_question(scene: Scene, entity: Entity) -> str:
    return language.casual(_named(scene, entity), scene.rng)


def _named(scene: Scene, entity: Entity) -> str:
    name = _spoken_name(scene, entity)
    template = scene.wording("referring").replace("{bare}", name)
    template = template.replace("{Bare}", language.sentence_case(name))
    return _agree(_fill(scene, template), "x", language.with_article(name))


def _spoken_name(scene: Scene, entity: Entity) -> str:
    """The name more often than any synonym, each as people would write it."""
    if not entity.synonyms or scene.rng.random() < 0.5:
        return language.spoken(entity.name)
    return language.spoken(scene.rng.choice(entity.synonyms))


def _implicit_question(scene: Scene, entity: Entity, located: str | None) -> str | None:
    """A question that does not name the entity; with a clue to where the label `located` lies."""
    split = scene.image.split
    descriptions = rules.reserved_share(entity.descriptions, split)
    questions = rules.reserved_share(entity.questions, split)
    if not descriptions and not questions:
        return None
    # Whole questions were written by hand one by one: use them as often as descriptions.
    whole = bool(questions) and (not descriptions or scene.rng.random() < 0.5)
    clue = _clue(scene, located, place=whole) if located is not None else None
    if located is not None and clue is None:
        return None
    if whole:
        question = _with_hint(scene, scene.rng.choice(questions), clue)
    else:
        question = _framed(scene, scene.rng.choice(descriptions), clue)
    question = language.casual(_with_company(scene, question), scene.rng)
    return None if rules.leaks(question, (entity,)) else question


def _framed(scene: Scene, description: str, clue: str | None) -> str:
    if clue is not None:
        description = f"{description}, {clue}"
    template = scene.wording("implicit")
    for _ in range(10):
        too_long = len(description.split()) > 7 and _FRAMES_FOR_SHORT.search(template)
        if not too_long and not (clue is not None and "{m}" in template):
            break
        template = scene.wording("implicit")
    return _agree(_fill(scene, template), "d", description)


def _with_hint(scene: Scene, question: str, clue: str | None) -> str:
    if clue is None:
        return question
    return f"{question} {scene.wording('hints').replace('{clue}', clue)}"


def _with_company(scene: Scene, question: str) -> str:
    """Now and then something in front about the person, or a word of thanks behind."""
    roll = scene.rng.random()
    if roll < 0.1 and not _FIRST_PERSON.search(question):
        laboratory = rules.family(scene.image.modality) == "microscopy"
        group = "openers.laboratory" if laboratory else "openers.clinical"
        return f"{_fill(scene, scene.wording(group))} {language.sentence_case(question)}"
    if roll < 0.15 and not re.search("please|pls", question, re.IGNORECASE):
        return f"{question} {scene.wording('closers')}"
    return question


def _clue(scene: Scene, label: str, place: bool) -> str | None:
    """A clue that is true of the masks and does not name the target; `place`: a position only."""
    image, entity = scene.image, scene.entities[label]
    clues = [
        clue.text
        for clue in find_clues(label, scene.shapes, image.plane, image.body_part)
        if (clue.place or not place) and not entity.is_named_in(clue.text)
    ]
    if not clues:
        return None
    text = scene.rng.choice(clues)
    for other in scene.shapes:
        name = language.with_article(language.spoken(other))
        text = text.replace("{" + other + "}", name)
    return _fill(scene, text)


def _distinct_labels(scene: Scene, number: int) -> list[str]:
    first = scene.pick_label()
    others = [label for label in scene.shapes if label != first]
    return [first, *scene.rng.sample(others, number - 1)]


def _listed(scene: Scene, labels: Sequence[str]) -> str | None:
    entities = [scene.entities[label] for label in labels]
    if scene.rng.random() < 0.5:
        names = (_spoken_name(scene, entity) for entity in entities)
        return language.join([language.with_article(name) for name in names])
    phrases = [_short_description(scene, entity) for entity in entities]
    found = [phrase for phrase in phrases if phrase is not None]
    if len(found) < len(phrases) or rules.leaks(" ".join(found), entities):
        return None
    return language.join(found)


def _short_description(scene: Scene, entity: Entity) -> str | None:
    allowed = rules.reserved_share(entity.descriptions, scene.image.split)
    short = [
        text for text in allowed if len(text.split()) <= 10 and not re.search(r",| and ", text)
    ]
    return scene.rng.choice(short) if short else None


def _other_side(label: str) -> str | None:
    for side, opposite in (("left", "right"), ("right", "left")):
        if re.search(rf"\b{side}\b", label):
            return re.sub(rf"\b{side}\b", opposite, label)
    return None


def _side_pair(scene: Scene) -> tuple[tuple[str, ...], str] | None:
    """A left and right pair in the image, and a phrase for both: "both kidneys"."""
    lefts = [
        label
        for label in scene.shapes
        if scene.entities[label].side == "left" and _other_side(label) in scene.shapes
    ]
    if not lefts:
        return None
    left = scene.rng.choice(lefts)
    right = left.replace("left", "right")
    phrases = _both(left)
    labels = (left, right) if scene.rng.random() < 0.5 else (right, left)
    return labels, scene.rng.choice(phrases)


def _both(left: str) -> list[str]:
    """Phrases for the left and the right one together, from the label of the left one."""
    noun = re.sub(r"\bleft ", "", left)
    if match := re.match("(.+) of left (.+)$", left):
        parts, wholes = language.plural(match[1]), language.plural(match[2])
        return [f"the {parts} of both {wholes}"]
    many = language.plural(noun)
    if many is None:
        return [f"{language.with_article(noun)} on both sides"]
    return [f"both {many}", f"the {many}", f"the left and right {noun}", f"the two {many}"]


def _round(scene: Scene, label: str) -> QARound:
    entity = scene.entities[label]
    question = _implicit_question(scene, entity, None) if scene.rng.random() < 0.5 else None
    question = question or _name_question(scene, entity)
    return QARound(question=question, answer=scene.explanation(label))


def _history(scene: Scene, label: str) -> list[QARound]:
    """Rounds about other structures of the image; without others, one that was refused."""
    others = [other for other in scene.shapes if other != label]
    if not others or scene.rng.random() < 0.15:
        draft = absent(scene) or _off_topic(scene, RefusalReason.UNCLEAR)
        return [QARound(question=draft.question, answer=draft.answer)]
    number = 2 if len(others) > 1 and scene.rng.random() < 0.3 else 1
    return [_round(scene, other) for other in scene.rng.sample(others, number)]


def _follow_up_question(scene: Scene, entity: Entity) -> str | None:
    description = _short_description(scene, entity)
    if description is None or scene.rng.random() < 0.5:
        phrase = language.with_article(_spoken_name(scene, entity))
    elif entity.is_named_in(description):
        return None
    else:
        phrase = description
    return _agree(_fill(scene, scene.wording("follow_up")), "y", phrase)


def _relation_to_earlier(scene: Scene, label: str) -> tuple[str, str] | None:
    """A label of the image to which `label` is the other side or the next level, and how to ask."""
    opposite, side = _other_side(label), scene.entities[label].side
    if side is not None and opposite in scene.shapes:
        return str(opposite), scene.wording("other_side").replace("{side}", side)
    neighbours = [(name, +1) for name in _levels(label, -1)]
    neighbours += [(name, -1) for name in _levels(label, +1)]
    present = [(name, step) for name, step in neighbours if name in scene.shapes]
    if not present:
        return None
    earlier, step = scene.rng.choice(present)
    return earlier, scene.wording("next_down" if step > 0 else "next_up")


def _levels(label: str, step: int) -> list[str]:
    """The neighbouring level of a vertebra or disc: `step` +1 is the next lower one."""
    if match := _LEVEL.match(label):
        order = [f"T{n}" for n in range(1, 13)] + [f"L{n}" for n in range(1, 6)]
        here = f"{match[1]}{match[2]}"
        at = order.index(here) + step if here in order else -1
        return [f"{order[at]} {match[3]}"] if 0 <= at < len(order) else []
    if match := _DISC.match(label):
        above = int(match[1]) + step
        below = "S1" if above == 5 else f"L{above + 1}"
        return [f"L{above}-{below} intervertebral disc"] if 1 <= above <= 5 else []
    return []


def _fill(scene: Scene, template: str, **phrases: str) -> str:
    """Puts in the image word and `phrases`; "{List}" is "{list}" at the start of a sentence."""
    word = scene.image_word()
    text = template.replace("{am}", language.with_indefinite(word)).replace("{m}", word)
    for key, phrase in phrases.items():
        text = text.replace("{" + key + "}", phrase)
        text = text.replace("{" + key.capitalize() + "}", language.sentence_case(phrase))
    return text


def _agree(text: str, key: str, phrase: str) -> str:
    """Puts the phrase in for {key}, and what must agree with it for {is}, {it}, {them}."""
    many = language.is_plural(phrase)
    for slot, word in zip(("is", "it", "them"), _PLURAL if many else _SINGULAR, strict=True):
        text = text.replace("{" + slot + "}", word)
        text = text.replace("{" + slot.capitalize() + "}", word.capitalize())
    text = text.replace("{" + key + "}", phrase)
    return text.replace("{" + key.upper() + "}", language.sentence_case(phrase))


def _wordings() -> Any:
    return rules.read_yaml("medisee.engine", "wordings.yaml")


@lru_cache(maxsize=64)
def _templates(group: str, split: str) -> Sequence[str]:
    entry = _wordings()
    for part in group.split("."):
        entry = entry[part]
    return rules.reserved_share(entry, split)
