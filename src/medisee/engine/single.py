"""Questions about one structure: by its name, or by everything but its name."""

from __future__ import annotations

import random
import re

from medisee.data.sa_med2d import ImageRecord
from medisee.engine import language, phrasing, rules
from medisee.engine.scene import Draft, Perspective, Scene, agree
from medisee.entities import Entity

__all__ = [
    "implicit",
    "implicit_question",
    "name_question",
    "referring",
    "referring_question",
    "short_description",
    "spoken_name",
]


def referring(scene: Scene) -> Draft | None:
    """A question that names its target."""
    label = scene.pick_label()
    question = name_question(scene, scene.entities[label])
    return Draft("referring", question, scene.explanation(label), (label,))


def implicit(scene: Scene) -> Draft | None:
    """A question that tells its target by what it is, does or looks like, or where it lies."""
    label = scene.pick_label()
    located = scene.rng.random() < 0.3
    question = implicit_question(scene, scene.entities[label], label if located else None)
    if question is None:
        return None
    perspective: Perspective = "location" if located else "attribute"
    return Draft("implicit", question, scene.explanation(label), (label,), perspective)


def referring_question(image: ImageRecord, entity: Entity, rng: random.Random) -> str:
    """A cleanly typed question that names the entity, in wordings of the image's split."""
    return _named(Scene(image, {}, {}, {}, rng), entity)


def name_question(scene: Scene, entity: Entity) -> str:
    """A question that names the entity, as people type."""
    return language.casual(_named(scene, entity), scene.rng)


def _named(scene: Scene, entity: Entity) -> str:
    name = spoken_name(scene, entity)
    template = scene.wording("referring").replace("{bare}", name)
    template = template.replace("{Bare}", language.sentence_case(name))
    return agree(scene.fill(template), "x", language.with_article(name))


def spoken_name(scene: Scene, entity: Entity) -> str:
    """The name more often than any synonym, each as people would write it."""
    if not entity.synonyms or scene.rng.random() < 0.5:
        return language.spoken(entity.name)
    return language.spoken(scene.rng.choice(entity.synonyms))


def implicit_question(scene: Scene, entity: Entity, located: str | None) -> str | None:
    """A question that does not name the entity; with a clue to where the label `located` lies."""
    split = scene.image.split
    descriptions = rules.reserved_share(entity.descriptions, split)
    questions = rules.reserved_share(entity.questions, split)
    if not descriptions and not questions:
        return None
    # Whole questions were written by hand one by one: use them as often as descriptions.
    whole = bool(questions) and (not descriptions or scene.rng.random() < 0.5)
    clue = None
    if located is not None:
        clue = phrasing.choose_clue(scene, phrasing.clues_of(scene, located), place=whole)
        if clue is None:
            return None
    if whole:
        question = phrasing.ask_whole(scene, scene.rng.choice(questions), clue)
    else:
        group = "implicit" if clue is None else "located"
        question = phrasing.ask_framed(scene, group, scene.rng.choice(descriptions), clue)
    question = language.casual(_with_company(scene, question), scene.rng)
    return None if rules.leaks(question, (entity,)) else question


def _with_company(scene: Scene, question: str) -> str:
    """Now and then something in front about the person, or a word of thanks behind."""
    roll = scene.rng.random()
    if roll < 0.1:
        return phrasing.with_opener(scene, question) or question
    return phrasing.with_closer(scene, question) if roll < 0.15 else question


def short_description(scene: Scene, entity: Entity) -> str | None:
    """A description that still reads well in a list; None when there is none."""
    allowed = rules.reserved_share(entity.descriptions, scene.image.split)
    short = [
        text for text in allowed if len(text.split()) <= 10 and not re.search(r",| and ", text)
    ]
    return scene.rng.choice(short) if short else None
