"""SA-Med2D-20M's layout, indexed by streaming.

    images/<modality>_<sequence or 00>--<source>--<case>[--<axis>_<slice>].png
    masks/<image stem>--<class id>_<instance>.png
    SAMed2D_v1.json                      image -> its mask files
    SAMed2D_v1_class_mapping_id.json     class -> id, or source -> class -> id
    index.jsonl                          optional: modality, body part, plane, patient, split...

Without `index.jsonl` the labels come from the class ids in the mask names, the modality and the
source from the image name, and nothing is known of patients and splits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medisee.errors import DataError

__all__ = ["ImageName", "ImageRecord", "Index", "MaskFile"]

_MASK_NAME = re.compile(r"--(\d+)_(\d+)\.png$")
_MODALITIES = {
    "ct": "CT",
    "mr": "MR",
    "pet": "PET",
    "us": "ultrasound",
    "x_ray": "X-ray",
    "fundus_photography": "fundus",
}
_SEQUENCES = {
    "t1w": "T1",
    "t2w": "T2",
    "t1c": "T1Gd",
    "t1ce": "T1Gd",
    "t1gd": "T1Gd",
    "cmr": "cine",
}
_BETWEEN, _COLON = re.compile(r"[\s,]*"), re.compile(r"\s*:\s*")
_CHUNK, _ITEM = 1 << 20, 1 << 12
_PAIRS = "SAMed2D_v1.json"


@dataclass(frozen=True)
class ImageName:
    """What an image's file name tells; "" means that it does not.

    case: as its own data set calls it; slice: axis and number, "" of an image without depth.
    """

    modality: str = ""
    source: str = ""
    case: str = ""
    slice: str = ""

    @classmethod
    def of(cls, file: str) -> ImageName:
        """Of `images/mr_t1--BraTS2021--BraTS2021_00218--z_0141.png` and the like."""
        kind, *rest = Path(file).stem.split("--")
        if not rest:
            return cls()
        source, case, *place = [*rest, ""] if len(rest) == 1 else rest
        number = place[0] if place and place[0] != "2d_none" else ""
        return cls(_modality(kind), source, case, number)


def _modality(kind: str) -> str:
    """ct_00 -> CT, mr_t1 -> MR-T1, x_ray -> X-ray; CT's perfusion maps are CT."""
    kind = re.sub(r"_\d+$", "", kind.lower())
    first, _, sequence = kind.partition("_")
    if first == "mr" and sequence:
        return f"MR-{_SEQUENCES.get(sequence, sequence.upper())}"
    return _MODALITIES.get(kind) or _MODALITIES.get(first) or kind


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
        if not (root / "index.jsonl").is_file() and not (root / _PAIRS).is_file():
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

    def offsets(self) -> Iterator[tuple[int, str]]:
        """Streams where each image's entry begins (see `at`), and something that tells it apart.

        20 million masks fit in memory as these numbers, not as records.
        """
        path = self.root / "index.jsonl"
        if path.is_file():
            with path.open("rb") as lines:
                start = 0
                for line in lines:
                    if line.strip():
                        yield start, line.decode(errors="replace")
                    start += len(line)
        else:
            with (self.root / _PAIRS).open(encoding="latin-1", newline="") as stream:
                yield from ((start, key) for start, key, _ in _object_items(stream))

    def at(self, offset: int) -> Iterator[ImageRecord | DataError]:
        """What `entries` gives for the image whose entry begins there."""
        path = self.root / "index.jsonl"
        if path.is_file():
            with path.open("rb") as lines:
                lines.seek(offset)
                line = lines.readline().decode(errors="replace")
            yield _record_or_error(line, f"index.jsonl, byte {offset}")
            return
        with (self.root / _PAIRS).open("rb") as stream:
            stream.seek(offset)
            image, files = _item_of(stream)
        yield from self._pair(image, files)

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
        with (self.root / _PAIRS).open(encoding="utf-8") as stream:
            for _, image, files in _object_items(stream):
                yield from self._pair(image, files)

    def _pair(self, image: str, files: Iterable[str]) -> Iterator[ImageRecord | DataError]:
        name = ImageName.of(image)
        labels = self._labels_of(name.source)
        masks = [_mask(file, labels) for file in files]
        yield from (mask for mask in masks if isinstance(mask, DataError))
        yield ImageRecord(
            image=image,
            masks=tuple(mask for mask in masks if isinstance(mask, MaskFile)),
            modality=name.modality,
            source=name.source,
        )

    def _labels_of(self, source: str) -> Mapping[int, str]:
        """id -> class, for the images of one source where each has its own numbers."""
        return self._classes.get(source) or self._classes.get("", {})

    @cached_property
    def _classes(self) -> dict[str, dict[int, str]]:
        """Source -> id -> class; "" stands for all sources."""
        path = self.root / "SAMed2D_v1_class_mapping_id.json"
        try:
            mapping = json.loads(path.read_text(encoding="utf-8"))
            found: dict[str, dict[int, str]] = {"": {}}
            for name, value in mapping.items():
                if isinstance(value, dict):
                    found[name] = {int(number): label for label, number in value.items()}
                else:
                    found[""][int(value)] = name
            return found
        except FileNotFoundError as error:
            raise DataError(f"{path.name}: is missing from the data set") from error
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(f"{path.name}: must map each class to its number") from error


def _mask(file: str, labels: Mapping[int, str]) -> MaskFile | DataError:
    match = _MASK_NAME.search(file)
    if match is None:
        return DataError(f"{file}: a mask's name ends in --<class id>_<instance>.png")
    label = labels.get(int(match[1]))
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


def _object_items(stream: IO[str]) -> Iterator[tuple[int, str, Any]]:
    """(offset, key, value) of one huge JSON object, of which only a chunk is ever held.

    An offset counts characters; `_object_item` reads the item there.
    """
    decoder = json.JSONDecoder()
    buffer, start, ended = stream.read(_CHUNK), 0, False
    at = len(buffer) - len(buffer.lstrip())
    if not buffer.startswith("{", at):
        raise DataError(f"{_PAIRS}: must be a JSON object of image -> masks")
    at += 1
    while True:
        at = _after(_BETWEEN, buffer, at)
        if buffer.startswith("}", at):
            return
        try:
            key, value, end = _object_item(decoder, buffer, at)
        except ValueError as error:
            if ended:
                raise DataError(f"{_PAIRS}: is cut off or not valid JSON") from error
            more = stream.read(_CHUNK)
            buffer, start, at, ended = buffer[at:] + more, start + at, 0, not more
            continue
        yield start + at, key, value
        at = end


def _object_item(decoder: json.JSONDecoder, text: str, at: int) -> tuple[str, Any, int]:
    """Key, value and end of the item that begins at `at`; ValueError where it is not whole."""
    key, end = decoder.raw_decode(text, at)
    value, end = decoder.raw_decode(text, _after(_COLON, text, end))
    return key, value, end


def _item_of(stream: IO[bytes]) -> tuple[str, Any]:
    """Key and value of the item that begins where the stream stands."""
    held = b""
    while more := stream.read(_ITEM):
        held += more
        with suppress(ValueError):
            text = held.decode("utf-8", errors="ignore")  # a character may be cut in two
            key, value, _ = _object_item(json.JSONDecoder(), text, 0)
            return key, value
    raise DataError(f"{_PAIRS}: was changed while it was read")


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    if match is None:
        raise ValueError("no colon")
    return match.end()
