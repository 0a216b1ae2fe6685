"""What every form of export writes from: the kept records, image by image, and the pixels."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medisee.data.mlmr_sd import read_records
from medisee.data.sa_med2d import Index
from medisee.engine.stats import Stats
from medisee.structures import QARecord, QATarget

__all__ = ["Export", "Labelled", "Written"]


@dataclass(frozen=True)
class Labelled:
    """One image: its file relative to the data set, what is labelled there, what is asked."""

    file: str
    targets: tuple[QATarget, ...]
    records: tuple[QARecord, ...]

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return Path(self.file).stem


@dataclass(frozen=True)
class Written:
    """Files of an export: those with the questions of each split, others, and a card's head."""

    questions: Mapping[str, list[Path]]
    others: list[Path] = field(default_factory=list)
    head: str = ""


@dataclass
class Export:
    """A built set on its way out; `to` is the folder to fill."""

    folder: Path
    to: Path
    stats: Stats
    keep: Callable[[Mapping[str, Any]], bool]
    progress: Callable[[int, int], None]
    data: Index | None = None
    _done: int = 0

    @property
    def splits(self) -> list[str]:
        """The splits that have a record."""
        return [split for split, count in self.stats.records.items() if count]

    @property
    def index(self) -> Index:
        """The labelled images; only forms that hold images ask for them."""
        if self.data is None:
            raise TypeError("this form needs the images")
        return self.data

    def records(self, split: str) -> Iterator[QARecord]:
        """Streams the kept records of a split."""
        total = sum(self.stats.records.values())
        for record in read_records(self.folder / f"{split}.jsonl"):
            if self.keep({"licence": record.licence}):
                self._done += 1
                self.progress(self._done, total)
                yield record

    def images(self, split: str) -> Iterator[Labelled]:
        """Streams the images of a split with their records, which stand together in the set."""
        for file, group in groupby(self.records(split), key=lambda record: record.image):
            records = tuple(group)
            targets = {target.label: target for r in records for target in r.targets}
            yield Labelled(file, tuple(targets[label] for label in sorted(targets)), records)

    def copy_image(self, file: str) -> None:
        """Puts an image under its own name into the export."""
        goal = self.to / file
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.index.root / file, goal)

    def mask(self, target: QATarget) -> NDArray[np.bool_]:
        """(H, W) union of a target's instances."""
        return self.index.load_union(target.masks)
