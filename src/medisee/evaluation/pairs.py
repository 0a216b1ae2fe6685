"""What is asked about which image: the pairs of an evaluation, chosen by seed alone.

Questions come from the labels (a template names each), from a file of the benchmark's format
(questions without images), or from a question-answer set (`QARecord`s, each about one image).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from medisee.data.mlmr_sd import read_records
from medisee.data.sa_med2d import ImageRecord, Index
from medisee.engine import referring_question
from medisee.entities import load_entities
from medisee.errors import DataError
from medisee.structures import QARecord, RefusalReason

T = TypeVar("T")

__all__ = ["KINDS", "Pair", "Selection", "make_pairs"]

KINDS = ("referring", "implicit", "several", "absent", "round")
SHORT = 12
"""A question of at most so many words is short."""


@dataclass(frozen=True)
class Selection:
    """Which questions are asked about which images of a data set.

    split: of the data set; questions: a question file, or a question-answer set, or None (every
    label, by name); limit: images for each label or question (of a question-answer set, records
    for each category and kind), None for all; kinds: a selection of `KINDS`.
    """

    split: str = "test"
    questions: Path | None = None
    limit: int | None = 4
    kinds: tuple[str, ...] | None = None
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the question file by its content's SHA-256."""
        digest = None
        if self.questions is not None:
            digest = hashlib.sha256(_read_bytes(self.questions)).hexdigest()
        fields = {"split": self.split, "limit": self.limit, "seed": self.seed}
        return {**fields, "kinds": self.kinds and list(self.kinds), "questions": digest}


@dataclass(frozen=True)
class Pair:
    """A question about an image, with its answer key: labels, or a reason why there is none.

    kind: one of `KINDS`; category: the label, or the labels joined by " + ", or the reason of the
    refusal; style: what the question file says, else "template" or "record"; masks: the files
    whose union is the target; length: short | long; perspective: attribute | location, where the
    record tells; history: the questions of earlier rounds.
    """

    id: str
    image: str
    kind: str
    category: str
    style: str
    modality: str
    question: str
    labels: tuple[str, ...]
    masks: tuple[str, ...] = ()
    reason: RefusalReason | None = None
    length: str = "short"
    perspective: str | None = None
    history: tuple[str, ...] = ()


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


def make_pairs(index: Index, selection: Selection) -> list[Pair]:
    """The pairs of a selection, those of one image together.

    A referring template asks for every label of the split on up to `limit` images of it; every
    question of a benchmark file is asked on up to `limit` images that hold its labels, or, where
    it asks for something absent, whose modality and body part it names. A label in hundreds of
    images thus weighs no more than a rare one. A question-answer set is asked as it is, without
    templates. Raises DataError for a bad question file, an unknown kind, or when nothing is left.
    """
    if unknown := sorted(set(selection.kinds or ()) - set(KINDS)):
        raise DataError(f"unknown kinds of question: {', '.join(unknown)}")
    images = list(index.records(selection.split))
    if selection.questions is not None and _holds_records(selection.questions):
        pairs = _record_pairs(images, selection)
    else:
        pairs = _question_pairs(images, selection)
    wanted = [pair for pair in pairs if selection.kinds is None or pair.kind in selection.kinds]
    if not wanted:
        raise DataError(f"there is nothing to ask about the split '{selection.split}'")
    order = {image.image: number for number, image in enumerate(images)}
    return sorted(wanted, key=lambda pair: (order[pair.image], pair.history))


def _question_pairs(images: Sequence[ImageRecord], selection: Selection) -> list[Pair]:
    limit, seed = selection.limit, selection.seed
    pairs = list(_template_pairs(images, limit, seed))
    if selection.questions is not None:
        for asked in _read_questions(selection.questions):
            fitting = [image for image in images if asked.fits(image)]
            pairs += [_pair(asked, image) for image in _draw(fitting, limit, f"{seed}|{asked.id}")]
    return pairs


def _holds_records(path: Path) -> bool:
    """Whether the first line is a question-answer record, which says its image."""
    first = _read_bytes(path).lstrip().split(b"\n", 1)[0]
    try:
        return "image" in json.loads(first)
    except (ValueError, TypeError):
        return False  # the reader of questions names the line


def _record_pairs(images: Sequence[ImageRecord], selection: Selection) -> list[Pair]:
    known = {image.image: image for image in images}
    groups: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for record in read_records(selection.questions or ""):
        if record.split not in (None, selection.split):
            continue
        if record.image not in known:
            raise DataError(f"record {record.id}: the split has no image {record.image}")
        pair = _pair_of(record, known[record.image])
        groups[pair.kind, pair.category].append(pair)
    return [
        pair
        for (kind, category), pairs in groups.items()
        for pair in _draw(pairs, selection.limit, f"{selection.seed}|{kind}|{category}")
    ]


def _pair_of(record: QARecord, image: ImageRecord) -> Pair:
    labels = tuple(target.label for target in record.targets)
    return Pair(
        id=record.id,
        image=record.image,
        kind=record.kind,
        category=record.refusal.value if record.refusal else " + ".join(labels),
        style="record",
        modality=record.modality or image.modality,
        question=record.question,
        labels=labels,
        masks=tuple(file for target in record.targets for file in target.masks),
        reason=record.refusal,
        length=record.length or _length(record.question),
        perspective=record.perspective,
        history=tuple(earlier.question for earlier in record.history),
    )


def _length(question: str) -> str:
    return "short" if len(question.split()) <= SHORT else "long"


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


def _draw(items: Sequence[T], limit: int | None, seed: str) -> Sequence[T]:
    if limit is None or len(items) <= limit:
        return items
    return random.Random(seed).sample(items, limit)


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
        masks=tuple(file for label in asked.labels for file in image.files(label)),
        reason=asked.reason,
        length=_length(asked.question),
    )


def _read_questions(path: Path) -> Iterator[_Asked]:
    seen: set[str] = set()
    for number, line in enumerate(_read_bytes(path).decode("utf-8", "replace").splitlines(), 1):
        if line.strip():
            asked = _parse(line, f"{path.name}, line {number}")
            if asked.id in seen:
                raise DataError(f"{path.name}, line {number}: the id occurs twice")
            seen.add(asked.id)
            yield asked


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read: {error.strerror}") from error


def _parse(line: str, where: str) -> _Asked:
    try:
        entry = json.loads(line)
        kind = entry["kind"]
        if kind not in KINDS or kind == "round":  # a round needs the image it began with
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
