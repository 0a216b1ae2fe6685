"""From the parts of a build to the files that people use; every file appears when complete."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medisee.data.sa_med2d import Index
from medisee.engine.card import write_card
from medisee.engine.croissant import croissant
from medisee.engine.intake import SPLITS, thumbnail
from medisee.engine.splitting import LeakCheck, near_identical
from medisee.engine.stats import Stats, read_stats

__all__ = ["Assembly", "assemble"]

# Tag of a part's line -> file that the line goes to.
_FILES = {
    **{split: f"{split}.jsonl" for split in SPLITS},
    "dropped": "work/dropped.jsonl",
    "quarantined": "work/quarantined.jsonl",
    "left_out": "work/left_out.jsonl",
}


@dataclass(frozen=True)
class Assembly:
    """A set that is complete: where it is, and what is in it."""

    folder: Path
    stats: Stats


@dataclass
class _Totals:
    """What is counted over all images."""

    pairs: int = 0
    built: int = 0
    checked: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    leaks: LeakCheck = field(default_factory=lambda: LeakCheck(SPLITS))

    def add(self, image: Mapping[str, Any]) -> None:
        """Counts an image that some record is about."""
        self.pairs += image["pairs"]
        self.built += image["built"]
        for counter in ("checked", "mended", "dropped", "quarantined"):
            getattr(self, counter).update(image[counter])
        if image["used"]:
            self.leaks.add(image["split"], image["patient"], image["likeness"])


def assemble(
    index: Index, parts: Sequence[Path], out: Path, settings: Mapping[str, Any]
) -> Assembly:
    """Puts the parts together in their order, compares the splits and writes the card."""
    totals = _Totals()
    with ExitStack() as stack:
        files = {tag: stack.enter_context(_Whole(out / name)) for tag, name in _FILES.items()}
        for tag, value in _lines(parts):
            if tag == "image":
                totals.add(json.loads(value))
                continue
            if tag == "left_out" and not (entry := json.loads(value))["image"]:
                totals.pairs += entry["pairs"]  # of a mask whose label the index does not know
            files[tag].write(value)
    twins = _twins(index, parts, totals.leaks)
    with _Whole(out / "work" / "leaks.jsonl") as file:
        for pair in twins:
            file.write(json.dumps(pair) + "\n")
    with _Whole(out / "work" / "summary.json") as file:
        json.dump(_summary(totals, len(twins), settings), file, indent=1)
    stats = read_stats(out)
    with _Whole(out / "card.md") as file:
        file.write(write_card(stats))
    written = {split: [out / f"{split}.jsonl"] for split in SPLITS if stats.records[split]}
    with _Whole(out / "croissant.json") as file:
        file.write(croissant(out, stats, written))
    return Assembly(out, stats)


def _summary(totals: _Totals, twins: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "settings": dict(settings),
        "pairs": {"in all": totals.pairs, "built": totals.built},
        "rules": {
            rule: {
                "checked": totals.checked[rule],
                "mended": totals.mended[rule],
                "dropped": totals.dropped[rule],
            }
            for rule in sorted(totals.checked)
        },
        "quarantined": dict(sorted(totals.quarantined.items())),
        "leaks": {"patients in two splits": totals.leaks.patients(), "images in two splits": twins},
    }


def _lines(parts: Iterable[Path]) -> Iterator[tuple[str, str]]:
    for part in parts:
        with part.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                tag, _, value = line.partition("\t")
                yield tag, value


def _twins(index: Index, parts: Sequence[Path], leaks: LeakCheck) -> list[tuple[str, str]]:
    """Names of images that are near-identical across splits."""
    candidates = leaks.candidates()
    names = _names(parts, {number for pair in candidates for number in pair})

    @lru_cache(maxsize=256)
    def small(number: int) -> NDArray[np.float32]:
        return thumbnail(index.load_image(names[number]))

    return [
        (names[first], names[second])
        for first, second in candidates
        if near_identical(small(first), small(second))
    ]


def _names(parts: Sequence[Path], wanted: set[int]) -> dict[int, str]:
    """Names of used images by their number; a second reading is cheaper than holding all."""
    if not wanted:
        return {}
    images = (json.loads(value) for tag, value in _lines(parts) if tag == "image")
    used = (image["image"] for image in images if image["used"])
    return {number: name for number, name in enumerate(used) if number in wanted}


class _Whole:
    """A text file that replaces the one in its place when the block ends without an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")

    def __enter__(self) -> IO[str]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("w", encoding="utf-8", newline="\n")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)
