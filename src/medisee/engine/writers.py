"""The offline writer: curated knowledge joined with geometry measured from the masks.

Everything is decided by seed, split and image name, so the same input gives the same records in
the same order, and one image's records do not depend on the others.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import sqrt
from typing import Literal

from medisee.data.sa_med2d import ImageRecord, Index
from medisee.engine.combined import follow_up, several
from medisee.engine.refusing import absent
from medisee.engine.scene import Draft, Scene
from medisee.engine.single import implicit, referring
from medisee.entities import Entity
from medisee.errors import DataError
from medisee.structures import QARecord, QATarget

__all__ = ["DEFAULT_MIX", "KINDS", "VERSION", "compose_records", "record_of"]

VERSION = "offline-2"
"""Of the offline writer: counted up when the same input would give other records."""

Length = Literal["short", "long"]

DEFAULT_MIX: Mapping[str, float] = {
    "referring": 0.28,
    "implicit": 0.42,
    "absent": 0.16,
    "several": 0.08,
    "round": 0.06,
}
"""Share of each kind of record."""

KINDS: Mapping[str, Callable[[Scene], Draft | None]] = {
    "referring": referring,
    "implicit": implicit,
    "absent": absent,
    "several": several,
    "round": follow_up,
}
"""Who drafts each kind of record."""
_TRIES = 6


def compose_records(
    index: Index,
    entities: Mapping[str, Entity],
    split: str = "train",
    count: int = 60_000,
    seed: int = 0,
    mix: Mapping[str, float] = DEFAULT_MIX,
) -> Iterator[QARecord]:
    """About `count` records of one split, image by image in the order of the index.

    Categories are balanced: one with n images gets a share in proportion to sqrt(n). No question
    occurs twice on one image. Training records never use the wordings that are reserved for the
    other splits, and those use nothing else. An image without an entity is skipped with a warning.
    Raises DataError for an unknown kind in `mix` or a split without images.
    """
    if unknown := sorted(mix.keys() - KINDS.keys()):
        raise DataError(f"unknown kinds of record: {', '.join(unknown)}")
    frequency = Counter(label for image in index.records(split) for label in image.labels)
    if not frequency:
        raise DataError(f"the data set has no labelled image in the split '{split}'")
    if missing := sorted(frequency.keys() - entities.keys()):
        warnings.warn(f"no knowledge of {len(missing)} labels: {', '.join(missing)}", stacklevel=2)
    weights = {label: 1 / sqrt(n) for label, n in frequency.items() if label in entities}
    total = sum(weights[label] * frequency[label] for label in weights)
    for image in index.records(split):
        share = sum(weights.get(label, 0.0) for label in image.labels) / total
        if share:
            yield from _image_records(index, entities, image, count * share, seed, mix, weights)


def _image_records(
    index: Index,
    entities: Mapping[str, Entity],
    image: ImageRecord,
    expected: float,
    seed: int,
    mix: Mapping[str, float],
    weights: Mapping[str, float],
) -> Iterator[QARecord]:
    rng = random.Random(f"{seed}|{image.split}|{image.image}")
    number = int(expected) + (rng.random() < expected % 1)
    if not number:
        return
    masks = {label: index.load_mask(image, label) for label in image.labels}
    scene = Scene.of(image, masks, entities, weights, rng)
    if not scene.shapes:
        return
    asked: set[str] = set()
    for kind in rng.choices(list(mix), list(mix.values()), k=number):
        draft = _draft(kind, scene, asked)
        if draft is not None:
            yield record_of(draft, scene)


def _draft(kind: str, scene: Scene, asked: set[str]) -> Draft | None:
    """A draft whose question is new on this image; where the kind is impossible, a plain one."""
    for attempt in range(_TRIES):
        writer = KINDS[kind] if attempt < _TRIES // 2 else scene.rng.choice(_PLAIN)
        draft = writer(scene)
        if draft is not None and draft.key not in asked:
            asked.add(draft.key)
            return draft
    return None


_PLAIN: Sequence[Callable[[Scene], Draft | None]] = (referring, implicit)


def record_of(
    draft: Draft, scene: Scene, length: Length | None = None, pass_: Literal[1, 2] = 1
) -> QARecord:
    """The record of a draft, with its id; `pass_` is the pass that wrote it."""
    image = scene.image
    targets = [
        QATarget(label=label, masks=list(image.files(label)), box=scene.shapes[label].box)
        for label in draft.labels
    ]
    if length is None:
        length = "short" if len(draft.question.split()) <= 12 else "long"
    key = "|".join((image.image, draft.kind, draft.key, *draft.labels))
    record = QARecord(
        id=hashlib.sha256(key.encode()).hexdigest()[:16],
        image=image.image,
        kind=draft.kind,
        targets=targets,
        modality=image.modality,
        perspective=draft.perspective,
        length=length,
        question=draft.question,
        answer=draft.answer,
        history=draft.history,
        refusal=draft.refusal,
        writer="offline",
        prompt_version=VERSION,
        licence=image.licence,
        split=image.split,
    )
    return record if pass_ == 1 else record.model_copy(update={"pass_": pass_})
