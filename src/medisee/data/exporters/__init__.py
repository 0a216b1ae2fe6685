"""A built set in the form in which others read it: `export_set` is the one door.

Each form is a module with `write(export)`; what they have in common (which records are kept, data
card, Croissant metadata, that the folder appears only when it is complete) stands here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from medisee.data.exporters.export import Export, Written
from medisee.data.licences import may_be_passed_on
from medisee.data.sa_med2d import Index
from medisee.engine.card import write_card
from medisee.engine.croissant import croissant
from medisee.engine.stats import Stats, read_stats
from medisee.errors import DataError

__all__ = ["FORMATS", "WITH_IMAGES", "export_set"]

FORMATS = {
    "parquet": "the records in Parquet shards; images stay where they are",
    "authors": "one line for each question about one target, with image and mask files",
    "coco": "COCO with run lengths, the questions beside the annotations",
    "datasets": "a folder that datasets.load_dataset opens: questions, and images with masks",
}
"""Form -> what it is; each is a module here."""

WITH_IMAGES = frozenset(("authors", "coco", "datasets"))
"""Forms that hold the images too, and so need the data set that the build read."""


def export_set(
    folder: str | Path,
    to: str | Path,
    form: str,
    *,
    data: str | Path | None = None,
    redistributable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Stats:
    """Writes the set built in `folder` to the folder `to`; it appears only when it is complete.

    Args:
        form: one of FORMATS.
        data: the labelled images that the set was built from, for forms that hold images.
        redistributable: leave out images whose licence does not allow to pass them on.
        progress: called with records done and records in all.

    Returns:
        The counts of what was exported.

    Raises:
        DataError: there is no built set, `to` holds something, or no record is left.
    """
    to = Path(to)
    if form not in FORMATS:
        raise DataError(f"'{form}' is no form of export; known: {', '.join(FORMATS)}")
    if form in WITH_IMAGES and data is None:
        raise DataError(f"an export as {form} holds the images: --data says where they are")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise DataError(f"{to}: holds something already; choose a new folder")
    keep = _may_leave if redistributable else _keep_all
    stats = _counted(Path(folder), keep)
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        index = None if data is None else Index.open(data)
        export = Export(Path(folder), partial, stats, keep, progress or _silent, index)
        _write(export, form)
        if to.exists():
            to.rmdir()
        partial.replace(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return stats


def _write(export: Export, form: str) -> None:
    """The form's files, then card and metadata, which tell of them."""
    written: Written = import_module(f"{__name__}.{form}").write(export)
    metadata = croissant(export.to, export.stats, written.questions, written.others)
    about = (
        f"This export: {FORMATS[form]}. Pairs, review, what was left out and checksum are those of "
        "the whole set that was built."
    )
    for name, text in (
        ("README.md", written.head + write_card(export.stats, about)),
        ("croissant.json", metadata),
    ):
        (export.to / name).write_text(text, encoding="utf-8", newline="\n")


def _counted(folder: Path, keep: Callable[[Mapping[str, Any]], bool]) -> Stats:
    everything = read_stats(folder)
    if keep is _keep_all:
        return everything
    stats = read_stats(folder, keep)
    images = sum(everything.images.values()) - sum(stats.images.values())
    stats.left_out["its licence does not let the image be passed on"] = {
        "files": images,
        "pairs": 0,
    }
    if not any(stats.records.values()):
        raise DataError(f"{folder}: no image has a licence that lets it be passed on")
    return stats


def _may_leave(record: Mapping[str, Any]) -> bool:
    return may_be_passed_on(record["licence"])


def _keep_all(record: Mapping[str, Any]) -> bool:
    return True


def _silent(done: int, total: int) -> None:
    """No progress is shown."""
