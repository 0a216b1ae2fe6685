"""The offline writer at full density: so many implicit questions about each target, and others.

Each target gets the same number of questions, in two passes that share neither a description nor
a hand-written question where there are enough of them, half of them short and half long, over
both perspectives. Everything follows from seed and image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from medisee.engine import language, phrasing, rules
from medisee.engine.clues import Clue
from medisee.engine.review import LIMITS
from medisee.engine.scene import Draft, Perspective, Scene
from medisee.engine.writers import KINDS, Length, record_of
from medisee.structures import QARecord

__all__ = ["MAX_LOCATION_ALONE", "Accept", "Slot", "slots", "write_besides", "write_dense"]

MAX_LOCATION_ALONE = 0.4
"""Largest share of location questions about the only target of an image."""

Accept = Callable[[QARecord], "QARecord | None"]
"""A reviewer: the record as it is kept, or None."""

_TRIES = 40
# Besides the implicit ones: per 16 of them, so many of each kind for each target or each image.
_PER_TARGET = {"referring": 2, "round": 1}
_PER_IMAGE = {"absent": 4, "several": 4}
# Lengths at which the writer aims first, inside the reviewer's limits.
_AIMS = {"short": (5, 13), "long": (12, 20)}
_BRIEF = 8  # words of a wording that leave room for a clue in a short question


@dataclass(frozen=True)
class Slot:
    """What is to be written about a target: from which perspective, how long, in which pass."""

    perspective: Perspective
    length: Length
    pass_: Literal[1, 2]


@dataclass
class _Target:
    """What one pass may say about a label: its clues, and its wordings, least used first."""

    label: str
    clues: Sequence[Clue]
    tellings: deque[tuple[str, str]]  # ("description" or "question", text)


def write_dense(scene: Scene, per_target: int, accept: Accept) -> Iterator[QARecord]:
    """The accepted records of one image: `per_target` implicit ones for each label, then others.

    Where no clue holds, a location question becomes one of the other perspective; where nothing
    passes the reviewer in many tries, there is one record less. Nothing is asked about an image
    without a usable target.
    """
    if not scene.shapes:
        return
    for label in scene.shapes:
        yield from _about(scene, label, per_target, accept)
    yield from write_besides(scene, per_target, accept)


def write_besides(scene: Scene, per_target: int, accept: Accept) -> Iterator[QARecord]:
    """The accepted records of the other kinds: named, absent, several at once, and rounds."""
    for kind, number in _besides(scene, per_target):
        yield from _others(scene, kind, number, accept)


def _about(scene: Scene, label: str, per_target: int, accept: Accept) -> Iterator[QARecord]:
    tellings = _tellings(scene, label)
    if not tellings:
        return
    passes = [tellings[n::2] or tellings for n in (0, 1)]
    clues = phrasing.clues_of(scene, label)
    targets = [_Target(label, clues, deque(part)) for part in passes]
    for slot in slots(per_target, alone=len(scene.shapes) == 1):
        record = _fill(scene, targets[slot.pass_ - 1], slot, accept)
        if record is not None:
            yield record


def _tellings(scene: Scene, label: str) -> list[tuple[str, str]]:
    entity, split = scene.entities[label], scene.image.split
    found = [("description", text) for text in rules.reserved_share(entity.descriptions, split)]
    found += [("question", text) for text in rules.reserved_share(entity.questions, split)]
    scene.rng.shuffle(found)
    return found


def slots(per_target: int, alone: bool) -> Iterator[Slot]:
    """So many in two passes, lengths in turn.

    At most 40 % location where there is nothing to lie beside.
    """
    located = int(per_target * (MAX_LOCATION_ALONE if alone else 0.5))
    for number in range(per_target):
        # Spread evenly over the sequence, and so over passes and lengths.
        is_located = (number + 1) * located // per_target > number * located // per_target
        pass_: Literal[1, 2] = 1 if number < (per_target + 1) // 2 else 2
        length: Length = "long" if number // 2 % 2 else "short"
        yield Slot("location" if is_located else "attribute", length, pass_)


def _fill(scene: Scene, target: _Target, slot: Slot, accept: Accept) -> QARecord | None:
    """The first accepted question for a slot, of the other perspective where no clue fits."""
    record = None
    if slot.perspective == "location" and target.clues:
        record = _find(scene, target, slot, "location", accept)
    return record or _find(scene, target, slot, "attribute", accept)


def _find(
    scene: Scene, target: _Target, slot: Slot, perspective: Perspective, accept: Accept
) -> QARecord | None:
    """The first accepted question of many tries; its wording goes to the end of the line."""
    tellings = list(target.tellings)
    if perspective == "location" and slot.length == "short":
        tellings.sort(key=lambda telling: len(telling[1].split()) > _BRIEF)
    for attempt in range(_TRIES):
        low, high = _AIMS[slot.length] if attempt < _TRIES // 4 else LIMITS[slot.length]
        telling = tellings[attempt % len(tellings)]
        text = _compose(scene, target, telling, perspective, slot.length)
        if text is None or not low <= len(text.split()) <= high:
            continue
        answer = scene.explanation(target.label)
        draft = Draft("implicit", text, answer, (target.label,), perspective)
        record = accept(record_of(draft, scene, slot.length, slot.pass_))
        if record is not None:
            target.tellings.remove(telling)
            target.tellings.append(telling)
            return record
    return None


def _compose(
    scene: Scene,
    target: _Target,
    telling: tuple[str, str],
    perspective: Perspective,
    length: Length,
) -> str | None:
    kind, words = telling
    if perspective == "location":
        text = _located(scene, target, kind, words, LIMITS[length][1])
    elif kind == "question":
        text = words
    else:
        text = _described(scene, target, words, length)
    if text is None:
        return None
    company = 0.5 if length == "long" and len(text.split()) < _AIMS["long"][0] else 0.06
    if scene.rng.random() < company:
        text = phrasing.with_opener(scene, text) or text
    elif scene.rng.random() < 0.04:
        text = phrasing.with_closer(scene, text)
    return language.casual(text, scene.rng, typos=perspective == "attribute")


def _described(scene: Scene, target: _Target, words: str, length: Length) -> str | None:
    if length == "short":
        return phrasing.ask_framed(scene, "implicit", words)
    roll = scene.rng.random()
    if roll < 0.25:
        others = [text for kind, text in target.tellings if kind == "description"]
        return phrasing.ask_both(scene, words, scene.rng.choice(others))
    return phrasing.ask_framed(scene, "longer" if roll < 0.75 else "implicit", words)


def _located(scene: Scene, target: _Target, kind: str, words: str, high: int) -> str | None:
    """With a clue that leaves the question within `high` words."""
    placed = kind == "question" or scene.rng.random() < 0.65
    room = high - 1 - len(words.split())
    clue = phrasing.choose_clue(scene, target.clues, placed, room)
    if clue is None:
        return None
    if kind == "question":
        return phrasing.ask_whole(scene, words, clue, high)
    return phrasing.ask_framed(scene, "placed" if placed else "located", words, clue, high)


def _besides(scene: Scene, per_target: int) -> Iterator[tuple[str, int]]:
    share = per_target / 16
    for kind, number in _PER_TARGET.items():
        yield kind, round(number * share * len(scene.shapes))
    for kind, number in _PER_IMAGE.items():
        yield kind, round(number * share)


def _others(scene: Scene, kind: str, number: int, accept: Accept) -> Iterator[QARecord]:
    for _ in range(number):
        for _ in range(_TRIES // 8):
            draft = KINDS[kind](scene)
            record = accept(record_of(draft, scene)) if draft is not None else None
            if record is not None:
                yield record
                break
