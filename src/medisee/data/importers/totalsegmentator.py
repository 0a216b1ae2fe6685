"""TotalSegmentator's layout: a folder a subject, `segmentations/` with one mask a class.

SOURCE/s0001/ct.nii.gz (or mri.nii.gz)    SOURCE/s0001/segmentations/kidney_left.nii.gz ...
SOURCE/meta.csv                           optional: image_id;...;split
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from medisee.data.importers.units import Context, Flaw, Sample, Unit
from medisee.data.importers.volumes import Region, read_grid, regions_of, samples_of
from medisee.errors import DataError, MediSeeError

__all__ = ["list_units", "recognises"]

_VOLUMES = {"ct.nii.gz": "CT", "mri.nii.gz": "MR", "ct.nii": "CT", "mri.nii": "MR"}


def recognises(source: Path) -> bool:
    """Whether the folder, or one in it, holds a volume and `segmentations`."""
    return bool(_subjects(source))


def list_units(context: Context) -> list[Unit]:
    """One unit for each subject."""
    splits = _splits(context.source / "meta.csv")
    units = []
    for folder in _subjects(context.source):
        volume = next(folder / name for name in _VOLUMES if (folder / name).is_file())
        masks = sorted((folder / "segmentations").glob("*.nii*"))
        read = partial(_read, volume, masks, splits.get(folder.name, ""), context)
        units.append(Unit(context.relative(volume), (volume, *masks), read))
    return units


def _subjects(source: Path) -> list[Path]:
    folders = [source, *sorted(source.iterdir())] if source.is_dir() else []
    return [
        folder
        for folder in folders
        if (folder / "segmentations").is_dir()
        and any((folder / name).is_file() for name in _VOLUMES)
    ]


def _splits(meta: Path) -> dict[str, str]:
    """Subject -> train, val or test, where the table gives it."""
    if not meta.is_file():
        return {}
    with meta.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter=";"))
    known = ("train", "val", "test")
    return {
        str(row["image_id"]): str(row["split"])
        for row in rows
        if row.get("image_id") and row.get("split") in known
    }


def _read(path: Path, masks: list[Path], split: str, context: Context) -> Iterator[Sample | Flaw]:
    name = context.relative(path)
    volume = read_grid(path, name)
    regions: list[Region] = []
    for mask in masks:
        file = context.relative(mask)
        label = context.label(mask.name.split(".nii")[0])
        if label is None:
            continue
        try:
            found = read_grid(mask, file)
            if not volume.fits(found):
                raise DataError(f"{file}: lies on another grid than its volume")
        except MediSeeError as error:
            yield Flaw(file, str(error).removeprefix(f"{file}: ").removeprefix(f"{mask.name}: "))
            continue
        # Each class that a subject lacks has an empty file: that is no flaw.
        regions += regions_of(found.voxels > 0, {1: label}, file)
    subject = path.parent.name
    yield from samples_of(
        subject, volume, regions, context,
        patient=context.options.patient_of(subject) or subject,
        split=split, modality=_VOLUMES[path.name],
    )  # fmt: skip
