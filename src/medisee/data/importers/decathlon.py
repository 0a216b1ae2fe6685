"""Medical Segmentation Decathlon and nnU-Net: NIfTI volumes, label maps and dataset.json."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medisee.data.importers.options import read_json
from medisee.data.importers.units import Context, Flaw, Sample, Unit, damaged
from medisee.data.importers.volumes import read_grid, regions_of, samples_of
from medisee.errors import DataError

__all__ = ["list_units", "recognises"]

_MODALITIES = {
    "ct": "CT", "mri": "MR", "mr": "MR", "t1": "MR-T1", "t1w": "MR-T1", "t1gd": "MR-T1Gd",
    "t2": "MR-T2", "t2w": "MR-T2", "flair": "MR-FLAIR", "pet": "PET",
}  # fmt: skip
# Names of the Decathlon's tasks that say less than the words their classes need.
_ABOUT = {"brats": "brain", "braintumour": "brain", "hepaticvessel": "hepatic vessel"}


def recognises(source: Path) -> bool:
    """Whether the folder has a dataset.json with labels."""
    try:
        return "labels" in read_json(source / "dataset.json")
    except (DataError, TypeError):
        return False


def list_units(context: Context) -> list[Unit]:
    """One unit for each labelled volume."""
    path = context.source / "dataset.json"
    document = read_json(path)
    with damaged(path.name):
        classes = _classes(document["labels"])
        channels = document.get("channel_names") or document.get("modality") or {}
        first = str(dict(channels).get("0", "")).lower()
        pairs = _pairs(context.source, document)
    facts = {
        "modality": _MODALITIES.get(first, ""),
        "licence": str(document.get("licence") or document.get("license") or ""),
    }
    about = re.sub(r"^(task|dataset)[0-9]+_", "", str(document.get("name", "")).lower())
    about = _ABOUT.get(re.sub("[ _]", "", about), about).replace("_", " ")
    labels = {value: context.label(name, about, str(value)) for value, name in classes.items()}
    units = []
    for image, label in pairs:
        read = partial(_read, image, label, labels, facts, context)
        units.append(Unit(context.relative(image), (path, image, label), read))
    return units


def _classes(labels: dict[str, Any]) -> dict[int, str]:
    """Value -> class; nnU-Net writes it the other way round. 0 is background."""
    pairs = ((k, v) if str(k).isdigit() else (v, k) for k, v in labels.items())
    return {int(value): str(name) for value, name in pairs if int(value) != 0}


def _pairs(source: Path, document: dict[str, Any]) -> list[tuple[Path, Path]]:
    """(image, label map) as the document lists them, or as nnU-Net's folders hold them."""
    listed = document.get("training")
    if isinstance(listed, list) and listed:
        return [
            (_below(source, entry["image"]), _below(source, entry["label"])) for entry in listed
        ]
    ending = str(document.get("file_ending") or ".nii.gz")
    maps = sorted((source / "labelsTr").glob(f"*{ending}"))
    stems = [(path, path.name.removesuffix(ending)) for path in maps]
    return [(source / "imagesTr" / f"{stem}_0000{ending}", path) for path, stem in stems]


def _below(source: Path, name: str) -> Path:
    path = (source / name).resolve()
    if not path.is_relative_to(source.resolve()):
        raise DataError(f"dataset.json: '{name}' lies outside the folder")
    return source / path.relative_to(source.resolve())


def _read(
    image: Path,
    label_map: Path,
    labels: dict[int, str | None],
    facts: dict[str, str],
    context: Context,
) -> Iterator[Sample | Flaw]:
    name = context.relative(image)
    volume = read_grid(image, name)
    found = read_grid(label_map, context.relative(label_map))
    if not volume.fits(found):
        raise DataError(f"{name}: its label map lies on another grid")
    file = context.relative(label_map)
    values = np.rint(found.voxels).astype(np.int32)
    for value in (int(v) for v in np.unique(values) if v):
        if value not in labels:
            yield Flaw(file, f"class id {value} is unknown: dataset.json lacks it")
    wanted = {value: label for value, label in labels.items() if label is not None}
    case = re.sub(r"(_0000)?\.nii(\.gz)?$", "", image.name)
    patient = context.options.patient_of(case) or case
    regions = regions_of(values, wanted, file)
    yield from samples_of(case, volume, regions, context, patient=patient, **facts)
