"""What is asked about which image: the pairs of an evaluation, chosen by seed alone."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medisee.data.sa_med2d import ImageRecord, Index
from medisee.engine import referring_question
from medisee.entities import load_entities
from medisee.errors import DataError
from medisee.structures import RefusalReason

__all__ = ["Pair", "make_pairs"]

KINDS = ("referring", "implicit", "several", "absent")


@dataclass(frozen=True)
class Pair:
    """A question about an image, with its answer key: labels, or a reason why there is none.

    kind: referring | implicit | several | absent; category: the label, or the labels joined by
    " + ", or the reason of the refusal; style: what the question file says, else "template".
    """

    id: str
    image: str
    kind: str
    category: str
    style: str
    modality: str
    question: str
    labels: tuple[str, ...]
    reason: RefusalReason | None = None


@dataclass(frozen=True)
class _Asked:
    """One line of a question file."""

    id: str
    kind: str
    question: str
    labels: tuple[str, ...]
    style: str
    reason: RefusalReason | None
    modalities: frozenset[str]
    body_parts: frozenset[str]

    @property
    def category(self) -> str:
        return self.reason.value if self.reason else " + ".join(self.labels)

    def fits(self, image: ImageRecord) -> bool:
        if self.kind != "absent":
            return set(self.labels) <= set(image.labels)
        return (not self.modalities or image.modality in self.modalities) and (
            not self.body_parts or image.body_part in self.body_parts
        )


def make_pairs(
    index: Index,
    split: str,
    questions: str | Path | None = None,
    limit: int | None = 4,
    kinds: Collection[str] | None = None,
    seed: int = 0,
) -> list[Pair]:
    """The pairs of a split, those of one image together.

    A referring template asks for every label of the split on up to `limit` images of it (None:
    all); every question of the JSONL file `questions` is asked on up to `limit` images that hold
    its labels, or, where it asks for something absent, whose modality and body part it names.
    A label in hundreds of images thus weighs no more than a rare one. Raises DataError for a bad
    question file, an unknown kind, or when nothing is left to ask.
    """
    if unknown := sorted(set(kinds or ()) - set(KINDS)):
        raise DataError(f"unknown kinds of question: {', '.join(unknown)}")
    images = list(index.records(split))
    pairs = list(_template_pairs(images, limit, seed))
    if questions is not None:
        for asked in _read_questions(Path(questions)):
            fitting = [image for image in images if asked.fits(image)]
            pairs += [_pair(asked, image) for image in _draw(fitting, limit, f"{seed}|{asked.id}")]
    wanted = [pair for pair in pairs if kinds is None or pair.kind in kinds]
    if not wanted:
        raise DataError(f"there is nothing to ask about the split '{split}'")
    order = {image.image: number for number, image in enumerate(images)}
    return sorted(wanted, key=lambda pair: order[pair.image])


def _template_pairs(images: Sequence[ImageRecord], limit: int | None, seed: int) -> Iterator[Pair]:
    holders: dict[str, list[ImageRecord]] = defaultdict(list)
    for image in images:
        for label in image.labels:
            holders[label].append(image)
    entities = load_entities()
    for label in sorted(holders.keys() & entities.keys()):
        for image in _draw(holders[label], limit, f"{seed}|template|{label}"):
            rng = random.Random(f"{seed}|{label}|{image.image}")
            question = referring_question(image, entities[label], rng)
            asked = _Asked(
                f"template/{label}", "referring", question, (label,), "template", None,
                frozenset(), frozenset(),
            )  # fmt: skip
            yield _pair(asked, image)


def _draw(images: Sequence[ImageRecord], limit: int | None, seed: str) -> Sequence[ImageRecord]:
    if limit is None or len(images) <= limit:
        return images
    return random.Random(seed).sample(images, limit)


def _pair(asked: _Asked, image: ImageRecord) -> Pair:
    return Pair(
        id=f"{asked.id}|{image.image}",
        image=image.image,
        kind=asked.kind,
        category=asked.category,
        style=asked.style,
        modality=image.modality,
        question=asked.question,
        labels=asked.labels,
        reason=asked.reason,
    )


def _read_questions(path: Path) -> Iterator[_Asked]:
    try:
        lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read: {error.strerror}") from error
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if line.strip():
            asked = _parse(line, f"{path.name}, line {number}")
            if asked.id in seen:
                raise DataError(f"{path.name}, line {number}: the id occurs twice")
            seen.add(asked.id)
            yield asked


def _parse(line: str, where: str) -> _Asked:
    try:
        entry = json.loads(line)
        kind = entry["kind"]
        if kind not in KINDS:
            raise ValueError(f"kind '{kind}'")
        labels = tuple(entry["labels"]) if kind == "several" else (entry.get("label"),)
        reason = RefusalReason(entry["reason"]) if kind == "absent" else None
        applies = entry["applies_to"] if kind == "absent" else {}
        if not reason and not all(isinstance(label, str) for label in labels):
            raise ValueError("no label")
        return _Asked(
            id=str(entry["id"]),
            kind=kind,
            question=str(entry["question"]),
            labels=() if reason else labels,
            style=str(entry.get("style") or "written"),
            reason=reason,
            modalities=_values(applies, "modality") if reason else frozenset(),
            body_parts=_values(applies, "body_part") if reason else frozenset(),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: is not a question of the benchmark format ({error})") from error


def _values(applies: Mapping[str, Any], key: str) -> frozenset[str]:
    """The values of one list of `applies_to`; a missing list would mean "any", so it is an error.

    The keys may be in the plural.
    """
    plural = {"modality": "modalities", "body_part": "body_parts"}[key]
    if key not in applies and plural not in applies:
        raise KeyError(f"applies_to.{key}")
    return frozenset(applies.get(key, applies.get(plural)))
