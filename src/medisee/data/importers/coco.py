"""COCO annotations: polygons and run lengths. One file, or a folder with several.

Images are looked for in --images, beside the annotation file, in its `images` folder and in those
of the folder above. `instances_train.json` gives the split train; an image's entry may also hold
`patient`, `split` and the number of its licence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from medisee.data.importers.options import read_json
from medisee.data.importers.shapes import Mask, fill_polygons, read_coco_rle
from medisee.data.importers.units import Context, Flaw, LabelledMask, Sample, Unit, damaged
from medisee.errors import DataError
from medisee.io import read_image

__all__ = ["find_image", "list_units", "recognises"]

Entry = dict[str, Any]
_SPLIT = re.compile(r"(?:^|[_.-])(train|val|valid|test)(?=[_.-]|20\d\d|$)", re.IGNORECASE)


def recognises(source: Path) -> bool:
    """Whether the file, or a JSON file of the folder, is a COCO document."""
    return bool(_documents(source))


def list_units(context: Context) -> list[Unit]:
    """One unit for each image entry, and for each annotation that has no image."""
    return [unit for path in _documents(context.source) for unit in _units_of(path, context)]


def find_image(name: str, document: Path, context: Context) -> Path | None:
    """The file that an annotation file calls `name`; never outside the folders searched."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in "/.."]
    if not parts:
        return None
    near = document.parent
    folders = [near, near / "images", near.parent, near.parent / "images"]
    if context.options.images is not None:
        folders.insert(0, context.options.images)
    for folder in folders:
        for wanted in (Path(*parts), Path(parts[-1])):
            if (folder / wanted).is_file():
                return folder / wanted
    return None


def _documents(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".json" and _is_coco(source) else []
    found = [*source.glob("*.json"), *source.glob("annotations/*.json")]
    return [path for path in sorted(found) if _is_coco(path)]


def _is_coco(path: Path) -> bool:
    try:
        document = read_json(path)
    except DataError:
        return False
    keys = ("images", "annotations", "categories")
    return isinstance(document, dict) and all(isinstance(document.get(k), list) for k in keys)


def _units_of(path: Path, context: Context) -> Iterator[Unit]:
    document, where = read_json(path), context.relative(path)
    with damaged(where):
        names = {int(entry["id"]): str(entry["name"]) for entry in document["categories"]}
        licences = {entry.get("id"): entry.get("name") for entry in document.get("licenses") or []}
        by_image: dict[Any, list[Entry]] = {entry["id"]: [] for entry in document["images"]}
        lonely = [a for a in document["annotations"] if a.get("image_id") not in by_image]
        for annotation in document["annotations"]:
            by_image.setdefault(annotation.get("image_id"), []).append(annotation)
    split = _SPLIT.search(path.stem)
    for entry in document["images"]:
        # What the entry lacks comes from the document.
        licence = licences.get(entry.get("license")) or ""
        given = (split[1].lower().replace("valid", "val") if split else "") or ""
        facts = {"split": given, **entry, "licence": entry.get("licence") or licence}
        name = str(entry.get("file_name") or "")
        image = find_image(name, path, context)
        read = partial(_read, facts, image, by_image[entry["id"]], names, context)
        yield Unit(f"{where}#{entry['id']}", (path, *([image] if image else [])), read)
    for annotation in lonely:
        key = f"{where}#annotation {annotation.get('id')}"
        yield Unit(key, (path,), partial(_lonely, key))


def _lonely(key: str) -> Iterator[Flaw]:
    yield Flaw(key, "the annotation has no image entry")


def _read(
    facts: Entry,
    path: Path | None,
    annotations: list[Entry],
    names: dict[int, str],
    context: Context,
) -> Iterator[Sample | Flaw]:
    name = str(facts.get("file_name") or f"image {facts['id']}")
    if path is None:
        yield Flaw(name, "the image file is missing; --images says where images lie", "image")
        return
    image = read_image(path)
    stated = (facts.get("height", image.height), facts.get("width", image.width))
    if stated != (image.height, image.width):
        size = f"{image.width} x {image.height}"
        yield Flaw(name, f"the image is {size}, its entry {stated[1]} x {stated[0]}", "image")
        return
    if not annotations:
        yield Flaw(name, "the image has no annotation", "image")
        return
    masks: list[LabelledMask] = []
    for annotation in annotations:
        file = f"{name}#annotation {annotation.get('id')}"
        try:
            label = _label(annotation, names, context)
            if label is not None:
                mask = _mask(annotation, image.height, image.width)
                masks.append(LabelledMask(label, mask, file))
        except DataError as error:
            yield Flaw(file, str(error))
    split = str(facts["split"])
    stem = PurePosixPath(name).with_suffix("").as_posix()
    yield Sample(
        name=stem,
        image=image.display,
        masks=tuple(masks),
        modality=str(facts.get("modality") or image.modality or ""),
        patient=str(facts.get("patient") or facts.get("patient_id") or ""),
        split=split if split in ("train", "val", "test") else "",
        licence=str(facts["licence"]),
    )


def _label(annotation: Entry, names: dict[int, str], context: Context) -> str | None:
    number = annotation.get("category_id")
    if number not in names:
        raise DataError(f"class id {number} is unknown: the categories lack it")
    return context.label(names[number], "", str(number))


def _mask(annotation: Entry, height: int, width: int) -> Mask:
    outline = annotation.get("segmentation")
    if not outline:
        raise DataError("the annotation has no segmentation (a box alone is no mask)")
    try:
        if isinstance(outline, dict):
            return read_coco_rle(outline, height, width)
        return fill_polygons(outline, height, width)
    except (ValueError, TypeError) as error:
        raise DataError("the segmentation is damaged") from error
