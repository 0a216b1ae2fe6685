"""SA-Med2D-20M itself, or any folder in its layout: a part of it, chosen by the rule.

Its json file names 20 million masks. It is read once as a stream, of which 16 bytes an image are
kept: a hash of the name, and where the entry stands. Images are taken in the order of the hashes,
so a limit for each category favours no source; once a category is full, its images are not even
opened.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medisee.data.importers.units import Context, Flaw, LabelledMask, Sample, Unit, Unread
from medisee.data.sa_med2d import ImageName, ImageRecord, Index, MaskFile
from medisee.errors import DataError

__all__ = ["list_units", "recognises"]

_UNION = "union_"  # SA-Med2D's names of classes that put others together
_TOGETHER = 64  # images of a unit, on average


def recognises(source: Path) -> bool:
    """Whether the folder holds the layout's json files."""
    return (source / "SAMed2D_v1.json").is_file() and (
        source / "SAMed2D_v1_class_mapping_id.json"
    ).is_file()


def list_units(context: Context) -> list[Unit]:
    """Units of about 64 images, put together by the hash of their names."""
    index = Index.open(context.source)
    hashes, offsets = array("Q"), array("Q")
    for offset, name in index.offsets():
        hashes.append(int.from_bytes(sha256(name.encode()).digest()[:8], "big"))
        offsets.append(offset)
    order = np.argsort(np.asarray(hashes), kind="stable")
    places, keys = np.asarray(offsets)[order], np.asarray(hashes)[order]
    bits = max(0, (len(order) // _TOGETHER).bit_length() - 1)
    bounds = np.searchsorted(keys, np.arange(1, 1 << bits, dtype=np.uint64) << np.uint64(64 - bits))
    units = []
    for number, part in enumerate(np.split(places, bounds)):
        if len(part):
            images = _Images(index, part)
            read = partial(_read, images, context)
            units.append(Unit(f"images {number + 1} of {1 << bits}", images, read))
    return units


@dataclass(frozen=True)
class _Images:
    """Some images of the index; as an iterable, their files."""

    index: Index
    offsets: NDArray[np.uint64]

    def __iter__(self) -> Iterator[Path]:
        for entry in self.entries():
            if isinstance(entry, ImageRecord):
                yield from (self.index.root / file for file in _files(entry))

    def entries(self) -> Iterator[ImageRecord | DataError]:
        """The images' records, and what could not be read of the index."""
        for offset in self.offsets:
            yield from self.index.at(int(offset))


def _files(record: ImageRecord) -> list[str]:
    return [record.image, *(mask.file for mask in record.masks)]


def _read(images: _Images, context: Context) -> Iterator[Unread | Flaw]:
    for entry in images.entries():
        if isinstance(entry, DataError):
            file, _, reason = str(entry).partition(": ")
            yield Flaw(file, reason)
            continue
        masks, unions = _classes(entry, context)
        load = partial(_load, images.index, entry, masks, unions, context)
        labels = tuple(dict.fromkeys(label for _, label in masks))
        yield Unread(entry.image, labels, load)


def _classes(record: ImageRecord, context: Context) -> tuple[list[tuple[MaskFile, str]], int]:
    """Masks with their curated class, and how many stand for several classes at once."""
    single = [mask for mask in record.masks if not mask.label.startswith(_UNION)]
    labels = [(mask, context.label(mask.label)) for mask in single]
    kept = [(mask, label) for mask, label in labels if label is not None]
    return kept, len({mask.label for mask in record.masks}) - len({m.label for m in single})


def _load(
    index: Index,
    record: ImageRecord,
    masks: list[tuple[MaskFile, str]],
    unions: int,
    context: Context,
) -> Iterator[Sample | Flaw]:
    found: list[LabelledMask] = []
    for mask, label in masks:
        try:
            found.append(LabelledMask(label, index.load_union([mask.file]), mask.file))
        except DataError as error:
            yield Flaw(mask.file, str(error).removeprefix(f"{mask.file}: "))
    name = ImageName.of(record.image)
    case = f"{name.source}/{name.case}" if name.slice else ""
    yield Sample(
        name=Path(record.image).stem.replace("--", "-"),
        image=index.load_image(record),
        masks=tuple(found),
        modality=record.modality,
        body_part=record.body_part,
        plane=record.plane,
        patient=record.patient or context.options.patient_of(record.image) or case,
        split=record.split if record.split in ("train", "val", "test") else "",
        licence=record.licence,
        left_out=("class that puts others together",) * unions,
    )
