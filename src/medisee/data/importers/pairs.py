"""A folder of image/mask pairs: `images/` and `masks/` with the same stems.

SOURCE/images/case1.png           SOURCE/masks/case1.png           0 and values, or 0 and one class
SOURCE/images/case1.png           SOURCE/masks/<class>/case1.png   one folder a class
SOURCE/train/images/case1.png     SOURCE/train/masks/...           given splits: train, val, test
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medisee.data.importers.units import Context, Flaw, LabelledMask, Sample, Unit, damaged
from medisee.errors import DataError
from medisee.io import read_image

__all__ = ["list_units", "recognises"]

_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm"))
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def recognises(source: Path) -> bool:
    """Whether the folder, or its split folders, hold `images` and `masks`."""
    return source.is_dir() and bool(_parts(source))


def list_units(context: Context) -> list[Unit]:
    """One unit for each image, and for each mask that has none."""
    if not _parts(context.source):
        raise DataError(f"{context.source}: has no folders images and masks")
    return [unit for part in _parts(context.source) for unit in _units_of(part, context)]


def _parts(source: Path) -> dict[Path, str]:
    """Folders that hold the pairs -> their split, "" where none is given."""
    folders = {source: ""} | {source / name: split for name, split in _SPLITS.items()}
    return {
        folder: split
        for folder, split in folders.items()
        if (folder / "images").is_dir() and (folder / "masks").is_dir()
    }


def _units_of(part: Path, context: Context) -> Iterator[Unit]:
    images, masks = _by_stem(part / "images"), _masks_by_stem(part / "masks")
    mixed = any(folder == "" for found in masks.values() for folder, _ in found)
    if mixed and not context.options.classes and not context.options.label:
        raise DataError("say which class the masks show: --label NAME, or --classes FILE.json")
    for stem, files in images.items():
        found = masks.get(stem, [])
        for file in files:
            read = partial(_read, file, files[0], found, stem, part, context)
            yield Unit(context.relative(file), (file, *(path for _, path in found)), read)
    for stem, found in masks.items():
        for _, path in found if stem not in images else ():
            name = context.relative(path)
            yield Unit(name, (path,), partial(_lonely, name))


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    """Images by their path below the folder, without the suffix."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            found.setdefault(stem, []).append(path)
    return found


def _masks_by_stem(folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """Stem -> (class folder, or "" for a mask with values; file)."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for stem, paths in _by_stem(folder).items():
        top, _, rest = stem.rpartition("/")
        for path in paths:
            found.setdefault(rest, []).append((top, path))
    return found


def _lonely(name: str) -> Iterator[Flaw]:
    yield Flaw(name, "the mask has no image of the same name")


def _read(
    file: Path,
    first: Path,
    masks: list[tuple[str, Path]],
    stem: str,
    part: Path,
    context: Context,
) -> Iterator[Sample | Flaw]:
    name = context.relative(file)
    if file != first:
        yield Flaw(name, f"{first.name} has the same name already", "image")
        return
    if not masks:
        yield Flaw(name, "the image has no mask of the same name", "image")
        return
    image = read_image(file)
    found: list[LabelledMask] = []
    for folder, path in masks:
        for item in _read_mask(path, folder, context):
            if isinstance(item, Flaw):
                yield item
            else:
                found.append(item)
    split = _parts(context.source)[part]
    yield Sample(
        name=f"{split}_{stem}" if split else stem,
        image=image.display,
        masks=tuple(found),
        modality=image.modality or "",
        patient=context.options.patient_of(stem),
        split=split,
    )


def _read_mask(path: Path, folder: str, context: Context) -> Iterator[LabelledMask | Flaw]:
    """The classes of one mask file; each value without a class is a flaw."""
    name, options = context.relative(path), context.options
    try:
        values, lossy = _values(path, name)
    except DataError as error:
        yield Flaw(name, str(error).removeprefix(f"{name}: "))
        return
    one = options.label if not options.classes else ""
    if folder or one:
        label = context.label(folder or one)
        if label is not None:
            yield LabelledMask(label, values > (127 if lossy else 0), name)
        return
    if lossy:
        yield Flaw(name, "a JPEG cannot hold class values; save the mask as PNG")
        return
    yield from _valued(values, name, context)


def _valued(
    values: NDArray[np.int64], name: str, context: Context
) -> Iterator[LabelledMask | Flaw]:
    present = [int(value) for value in np.unique(values) if value]
    if not present:
        yield Flaw(name, "the mask is empty")
    for value in present:
        if str(value) not in context.options.classes:
            yield Flaw(name, f"class id {value} is unknown: the class mapping lacks it")
        elif (label := context.label(str(value))) is not None:
            yield LabelledMask(label, values == value, name)


def _values(path: Path, name: str) -> tuple[NDArray[np.int64], bool]:
    """(H, W) class values of a mask file, palette indices as they are; whether it is lossy."""
    with damaged(name), Image.open(path) as opened:
        opened.load()
        lossy = opened.format in ("JPEG", "WEBP")
        flat = opened if opened.mode in ("1", "L", "P", "I", "I;16", "F") else opened.convert("RGB")
        array = np.asarray(flat)
    if array.ndim == 3:
        if not (array == array[..., :1]).all():
            raise DataError(f"{name}: the mask is in colour; classes must be grey values")
        array = array[..., 0]
    return array.astype(np.int64), lossy
