"""Questions about several structures, and questions that follow on earlier ones."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medisee.engine import language, rules
from medisee.engine.refusing import absent, off_topic
from medisee.engine.scene import Draft, Scene, agree
from medisee.engine.single import (
    implicit_question,
    name_question,
    short_description,
    spoken_name,
)
from medisee.entities import Entity
from medisee.structures import QARound, RefusalReason

__all__ = ["follow_up", "several"]

_LEVEL = re.compile(r"^([CTL])(\d+) (vertebral body|vertebra)$")
_DISC = re.compile(r"^L(\d)-(?:L\d|S1) intervertebral disc$")


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
    question = scene.fill(scene.wording("several"), list=phrase)
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


def _distinct_labels(scene: Scene, number: int) -> list[str]:
    first = scene.pick_label()
    others = [label for label in scene.shapes if label != first]
    return [first, *scene.rng.sample(others, number - 1)]


def _listed(scene: Scene, labels: Sequence[str]) -> str | None:
    entities = [scene.entities[label] for label in labels]
    if scene.rng.random() < 0.5:
        names = (spoken_name(scene, entity) for entity in entities)
        return language.join([language.with_article(name) for name in names])
    phrases = [short_description(scene, entity) for entity in entities]
    found = [phrase for phrase in phrases if phrase is not None]
    if len(found) < len(phrases) or rules.leaks(" ".join(found), entities):
        return None
    return language.join(found)


def _side_pair(scene: Scene) -> tuple[tuple[str, ...], str] | None:
    """A left and right pair in the image, in this order, and a phrase: "both kidneys"."""
    lefts = [
        label
        for label in scene.shapes
        if scene.entities[label].side == "left" and _other_side(label) in scene.shapes
    ]
    if not lefts:
        return None
    left = scene.rng.choice(lefts)
    return (left, left.replace("left", "right")), scene.rng.choice(_both(left))


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


def _other_side(label: str) -> str | None:
    for side, opposite in (("left", "right"), ("right", "left")):
        if re.search(rf"\b{side}\b", label):
            return re.sub(rf"\b{side}\b", opposite, label)
    return None


def _round(scene: Scene, label: str) -> QARound:
    entity = scene.entities[label]
    question = implicit_question(scene, entity, None) if scene.rng.random() < 0.5 else None
    question = question or name_question(scene, entity)
    return QARound(question=question, answer=scene.explanation(label))


def _history(scene: Scene, label: str) -> list[QARound]:
    """Rounds about other structures of the image; without others, one that was refused."""
    others = [other for other in scene.shapes if other != label]
    if not others or scene.rng.random() < 0.15:
        draft = absent(scene) or off_topic(scene, RefusalReason.UNCLEAR)
        return [QARound(question=draft.question, answer=draft.answer)]
    number = 2 if len(others) > 1 and scene.rng.random() < 0.3 else 1
    return [_round(scene, other) for other in scene.rng.sample(others, number)]


def _follow_up_question(scene: Scene, entity: Entity) -> str | None:
    description = short_description(scene, entity)
    if description is None or scene.rng.random() < 0.5:
        phrase = language.with_article(spoken_name(scene, entity))
    elif entity.is_named_in(description):
        return None
    else:
        phrase = description
    return agree(scene.fill(scene.wording("follow_up")), "y", phrase)


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
