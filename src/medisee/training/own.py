"""Images that a user brings: which can be used, which are held out, what their names mean."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..data.sa_med2d import ImageRecord, Index
from ..engine.intake import take_in
from ..entities import Entity, load_entities
from ..errors import DataError

HELD_OUT = 0.15
"""Share of the patients that is measured with and not trained on, where no split is given."""


class OwnIndex(Index):
    """Chosen images of a data set, each in the split `train` or `val`."""

    def __init__(self, root: Path, chosen: Sequence[ImageRecord]) -> None:
        super().__init__(root)
        self.chosen = tuple(chosen)

    def entries(self) -> Iterator[ImageRecord | DataError]:
        return iter(self.chosen)


@dataclass(frozen=True)
class OwnData:
    """What a model is to learn: images, the labels' knowledge, and what could not be used.

    Attributes:
        entities: knowledge of every label, and of all that the package knows.
        labels: of the training images.
        left_out: reason -> count, of masks and images.
    """

    index: OwnIndex
    entities: Mapping[str, Entity]
    labels: tuple[str, ...]
    left_out: Mapping[str, int]

    @property
    def describes(self) -> bool:
        """Whether there are questions that do not name their target."""
        return any(self.entities[x].descriptions or self.entities[x].questions for x in self.labels)


def read_own(folder: Path, split: str = "", described: Sequence[Entity] = ()) -> OwnData:
    """The usable images of a folder in SA-Med2D's layout.

    Args:
        split: only images of this split; by default all but those of `test`.
        described: knowledge that goes before the package's own.

    Raises:
        DataError: no folder of this layout, no such split, or too little that can be used.
    """
    index = Index.open(folder)
    records = [record for record in index if record.split == split or not split]
    if split and not records:
        raise DataError(f"{folder} has no image in the split {split!r}")
    if not split:
        records = [record for record in records if record.split != "test"]
    labels = sorted({label for record in records for label in record.labels})
    entities = _knowledge(labels, described)
    usable, left_out = _usable(index, records, entities)
    chosen = _divided(usable)
    _check(folder, chosen, left_out)
    trained = Counter(x for record in chosen if record.split == "train" for x in record.labels)
    return OwnData(OwnIndex(index.root, chosen), entities, tuple(sorted(trained)), left_out)


def _knowledge(labels: Sequence[str], described: Sequence[Entity]) -> dict[str, Entity]:
    entities = {**load_entities(), **{entity.name: entity for entity in described}}
    return {**{label: _nameless(label) for label in labels}, **entities}


def _nameless(label: str) -> Entity:
    """Knowledge of a label of which only the name is known."""
    return Entity(
        name=label,
        synonyms=(),
        side=next((side for side in ("left", "right") if f"{side} " in f"{label} "), None),
        kind="region",
        body_parts=(),
        modalities=(),
        codes={},
        explanation=(f"This is what is called {label}.",),
        descriptions=(),
        questions=(),
    )


def _usable(
    index: Index, records: Sequence[ImageRecord], entities: Mapping[str, Entity]
) -> tuple[list[ImageRecord], Counter[str]]:
    """Records with the masks that can be used; reasons why others cannot."""
    usable: list[ImageRecord] = []
    left_out: Counter[str] = Counter()
    for record in records:
        taken = take_in(index, replace(record, split="train"), entities)
        left_out.update(flaw.reason for flaw in taken.left_out)
        if taken.image.masks:
            usable.append(replace(taken.image, split=record.split))
    return usable, left_out


def _divided(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """`train` and `val`: as given, else a share of the patients is held out."""
    held_out = {record.image for record in records if record.split == "val"}
    if not 0 < len(held_out) < len(records):
        patients = sorted({_patient(record) for record in records}, key=_digest)
        few = set(patients[: max(1, round(HELD_OUT * len(patients)))])
        held_out = {record.image for record in records if _patient(record) in few}
    return [
        replace(record, split="val" if record.image in held_out else "train") for record in records
    ]


def _patient(record: ImageRecord) -> str:
    return record.patient or record.image


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _check(folder: Path, chosen: Sequence[ImageRecord], left_out: Counter[str]) -> None:
    missing = {"train", "val"} - {record.split for record in chosen}
    if not chosen and left_out:
        [(reason, _)] = left_out.most_common(1)
        raise DataError(f"{folder} holds nothing to learn from: {reason}")
    if missing:
        raise DataError(f"{folder} must hold images with masks of two patients at least")
