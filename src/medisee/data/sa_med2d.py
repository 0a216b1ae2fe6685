"""SA-Med2D-20M's layout, indexed by streaming.

    images/<modality>_00--<source>--<id>.png
    masks/<image stem>--<class id>_<instance>.png
    SAMed2D_v1.json                      image -> its mask files
    SAMed2D_v1_class_mapping_id.json     class -> id
    index.jsonl                          optional: modality, body part, plane, patient, split...

Without `index.jsonl` the labels come from the class ids in the mask names, the modality and the
source from the image name, and nothing is known of patients and splits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medisee.errors import DataError

__all__ = ["ImageRecord", "Index", "MaskFile"]

_MASK_NAME = re.compile(r"--(\d+)_(\d+)\.png$")
_IMAGE_NAME = re.compile(r"^(?P<modality>.+?)_\d+--(?P<source>.+?)--")
_MODALITIES = {
    "ct": "CT",
    "mr": "MR",
    "pet": "PET",
    "us": "ultrasound",
    "x_ray": "X-ray",
}
_CHUNK = 1 << 20


@dataclass(frozen=True)
class MaskFile:
    """One instance: mask file relative to the data set, label, box xyxy px where it is known."""

    file: str
    label: str
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One labelled image; `image` is its file relative to the data set, "" means not known."""

    image: str
    masks: tuple[MaskFile, ...]
    modality: str = ""
    body_part: str = ""
    plane: str = ""
    source: str = ""
    patient: str = ""
    split: str = ""
    licence: str = ""
    labelled_by: str = ""
    augmented: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels without repetition, in the order of the masks."""
        return tuple(dict.fromkeys(mask.label for mask in self.masks))

    def files(self, label: str) -> tuple[str, ...]:
        """The mask files of all instances of `label`."""
        return tuple(mask.file for mask in self.masks if mask.label == label)


class Index:
    """A data set folder: its records as a stream, its images and masks on demand."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls, folder: str | Path) -> Index:
        """The index of `folder`; DataError when it does not have the layout."""
        root = Path(folder)
        if not root.is_dir():
            raise DataError(f"{folder}: there is no such data folder")
        if not (root / "index.jsonl").is_file() and not (root / "SAMed2D_v1.json").is_file():
            raise DataError(f"{folder}: has neither index.jsonl nor SAMed2D_v1.json")
        return cls(root)

    def __iter__(self) -> Iterator[ImageRecord]:
        for entry in self.entries():
            if isinstance(entry, DataError):
                raise entry
            yield entry

    def entries(self) -> Iterator[ImageRecord | DataError]:
        """Streams the records; a line or mask that cannot be used is given as its error."""
        if (self.root / "index.jsonl").is_file():
            return self._read_index()
        return self._read_pairs()

    def records(self, split: str | None = None) -> Iterator[ImageRecord]:
        """Streams the records, those of one split when it is given."""
        return (record for record in self if split is None or record.split == split)

    def load_image(self, record: ImageRecord | str) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 of a record, or of an image file relative to the data set."""
        file = record if isinstance(record, str) else record.image
        return np.asarray(self._open_png(file).convert("RGB"))

    def load_mask(self, record: ImageRecord, label: str) -> NDArray[np.bool_]:
        """(H, W) bool: the union of the label's instances in the record's image."""
        files = record.files(label)
        if not files:
            raise DataError(f"{record.image}: has no mask of '{label}'")
        return self.load_union(files)

    def load_union(self, files: Iterable[str]) -> NDArray[np.bool_]:
        """(H, W) bool: the union of mask files relative to the data set."""
        union: NDArray[np.bool_] | None = None
        for file in files:
            mask = np.asarray(self._open_png(file).convert("L")) > 0
            if union is not None and union.shape != mask.shape:
                raise DataError(f"{file}: is of another size than the image's other masks")
            union = mask if union is None else union | mask
        if union is None:
            raise DataError("a target has no mask file")
        return union

    def _open_png(self, file: str) -> Image.Image:
        try:
            with Image.open(self.root / file) as image:
                image.load()
                return image
        except FileNotFoundError as error:
            raise DataError(f"{file}: is missing from the data set") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{file}: is not a readable image") from error

    def _read_index(self) -> Iterator[ImageRecord | DataError]:
        with (self.root / "index.jsonl").open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _record_or_error(line, f"index.jsonl, line {number}")

    def _read_pairs(self) -> Iterator[ImageRecord | DataError]:
        with (self.root / "SAMed2D_v1.json").open(encoding="utf-8") as stream:
            for image, files in _object_items(stream, "SAMed2D_v1.json"):
                name = _IMAGE_NAME.match(Path(image).name)
                modality = name["modality"] if name else ""
                masks = [self._mask(file) for file in files]
                yield from (mask for mask in masks if isinstance(mask, DataError))
                yield ImageRecord(
                    image=image,
                    masks=tuple(mask for mask in masks if isinstance(mask, MaskFile)),
                    modality=_MODALITIES.get(modality, modality),
                    source=name["source"] if name else "",
                )

    @cached_property
    def _label_of_id(self) -> dict[int, str]:
        path = self.root / "SAMed2D_v1_class_mapping_id.json"
        try:
            mapping = json.loads(path.read_text(encoding="utf-8"))
            return {int(number): label for label, number in mapping.items()}
        except FileNotFoundError as error:
            raise DataError(f"{path.name}: is missing from the data set") from error
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(f"{path.name}: must map each class to its number") from error

    def _mask(self, file: str) -> MaskFile | DataError:
        match = _MASK_NAME.search(file)
        if match is None:
            return DataError(f"{file}: a mask's name ends in --<class id>_<instance>.png")
        label = self._label_of_id.get(int(match[1]))
        if label is None:
            return DataError(f"{file}: class id {match[1]} is not in the class mapping")
        return MaskFile(file, label)


def _record_or_error(line: str, where: str) -> ImageRecord | DataError:
    try:
        return _record(line, where)
    except DataError as error:
        return error


def _record(line: str, where: str) -> ImageRecord:
    try:
        entry = json.loads(line)
        masks = tuple(
            MaskFile(mask["file"], mask["label"], _box(mask.get("box"))) for mask in entry["masks"]
        )
        text = {key: str(entry.get(key) or "") for key in _TEXT_FIELDS}
        return ImageRecord(
            image=entry["image"], masks=masks, augmented=bool(entry.get("augmented")), **text
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: is not an image record ({error})") from error


_TEXT_FIELDS = (
    "modality",
    "body_part",
    "plane",
    "source",
    "patient",
    "split",
    "licence",
    "labelled_by",
)


def _box(values: Any) -> tuple[float, float, float, float] | None:
    if values is None:
        return None
    x1, y1, x2, y2 = (float(value) for value in values)
    return x1, y1, x2, y2


def _object_items(stream: IO[str], name: str) -> Iterator[tuple[str, Any]]:
    """The items of one huge JSON object, without ever holding more than a chunk of it."""
    decoder = json.JSONDecoder()
    buffer, ended = stream.read(_CHUNK).lstrip(), False
    if not buffer.startswith("{"):
        raise DataError(f"{name}: must be a JSON object of image -> masks")
    buffer = buffer[1:]
    while True:
        buffer = buffer.lstrip().removeprefix(",").lstrip()
        if buffer.startswith("}"):
            return
        try:
            key, end = decoder.raw_decode(buffer)
            rest = buffer[end:].lstrip()
            value, length = decoder.raw_decode(rest[1:].lstrip())
        except (ValueError, IndexError) as error:
            if ended:
                raise DataError(f"{name}: is cut off or not valid JSON") from error
            more = stream.read(_CHUNK)
            buffer, ended = buffer + more, not more
            continue
        yield key, value
        buffer = rest[1:].lstrip()[length:]
