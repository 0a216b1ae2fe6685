"""COCO: one file a split with images, annotations as run lengths, categories, and the questions.

OUT/instances_train.json ...    OUT/images/

An annotation is a category's union in an image. `questions` holds the records, each with the ids
of its image and annotations; readers of COCO leave it alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from medisee.data.exporters.export import Export, Labelled, Written
from medisee.structures import QARecord, encode_rle

__all__ = ["write"]

_LISTS = ("images", "annotations", "questions")


def write(export: Export) -> Written:
    """A document for each split, and the images."""
    categories = {label: number for number, label in enumerate(sorted(export.stats.categories), 1)}
    licences = {name: number for number, name in enumerate(sorted(export.stats.licences), 1)}
    paths = {split: export.to / f"instances_{split}.json" for split in export.splits}
    for split, path in paths.items():
        with ExitStack() as stack:
            parts = {name: stack.enter_context(_Part(path, name)) for name in _LISTS}
            for name, entry in _entries(export, split, categories, licences):
                parts[name].add(entry)
            _join(path, parts, categories, licences)
    return Written({}, list(paths.values()))


def _entries(
    export: Export, split: str, categories: dict[str, int], licences: dict[str, int]
) -> Iterator[tuple[str, Any]]:
    """(list, entry) of a split, image by image."""
    annotation = 0
    for number, image in enumerate(export.images(split), 1):
        export.copy_image(image.file)
        ids: dict[str, int] = {}
        height, width = export.index.load_image(image.file).shape[:2]
        yield "images", _image(image, number, (height, width), licences)
        for target in image.targets:
            annotation += 1
            ids[target.label] = annotation
            mask, (x1, y1, x2, y2) = export.mask(target), target.box
            yield (
                "annotations",
                {
                    "id": annotation,
                    "image_id": number,
                    "category_id": categories[target.label],
                    "segmentation": encode_rle(mask),
                    "area": int(mask.sum()),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": 0,
                },
            )
        for record in image.records:
            yield "questions", _question(record, number, ids)


def _image(
    image: Labelled, number: int, size: tuple[int, int], licences: dict[str, int]
) -> dict[str, Any]:
    first = image.records[0]
    return {
        "id": number,
        "file_name": image.file,
        "height": size[0],
        "width": size[1],
        "license": licences[first.licence or "not stated"],
        "modality": first.modality,
    }


def _question(record: QARecord, image: int, ids: dict[str, int]) -> dict[str, Any]:
    fields = record.model_dump(
        mode="json", by_alias=True, exclude={"image", "targets", "label", "box", "modality"}
    )
    annotations = [ids[target.label] for target in record.targets]
    return {**fields, "image_id": image, "annotation_ids": annotations}


class _Part:
    """A list of the document in a file of its own, so that none is ever held in memory."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path.with_name(f".{path.name}.{name}")

    def __enter__(self) -> _Part:
        self.file: IO[str] = self._path.open("w+", encoding="utf-8", newline="\n")
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self._path.unlink()

    def add(self, entry: Any) -> None:
        """One more entry of the list."""
        self.file.write(",\n" if self.file.tell() else "")
        json.dump(entry, self.file, ensure_ascii=False)

    def __iter__(self) -> Iterator[str]:
        self.file.seek(0)
        return iter(self.file)


def _join(
    path: Path, parts: dict[str, _Part], categories: dict[str, int], licences: dict[str, int]
) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for key, names in (("categories", categories), ("licenses", licences)):
            entries = [{"id": number, "name": name} for name, number in names.items()]
            out.write("{" if key == "categories" else "")
            out.write(f"{json.dumps(key)}: {json.dumps(entries, ensure_ascii=False)},\n")
        for name, part in parts.items():
            out.write(f"{json.dumps(name)}: [\n")
            out.writelines(part)
            out.write("]}\n" if name == _LISTS[-1] else "],\n")
