"""Label Studio's JSON export: brush strokes, polygons, rectangles and ellipses.

Coordinates are per cent of the image. A brush is a packed run-length code of the image's four
channels (thi.ng/rle-pack: 32 bits number of values, 5 bits word size - 1, four run sizes - 1 of 4
bits each, then runs), of which the last channel, opacity, is the mask. Of several annotations of a
task the one marked as ground truth counts, else the latest that was not cancelled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from medisee.data.importers.coco import find_image
from medisee.data.importers.options import read_json
from medisee.data.importers.shapes import Mask, fill_ellipse, fill_polygons, fill_rectangle
from medisee.data.importers.units import Context, Flaw, LabelledMask, Sample, Unit
from medisee.errors import DataError
from medisee.io import read_image

__all__ = ["decode_brush", "list_units", "recognises"]

Entry = dict[str, Any]
_UPLOAD = re.compile("^[0-9a-f]{8}-")


def recognises(source: Path) -> bool:
    """Whether the file, or a JSON file of the folder, is a list of tasks with annotations."""
    return bool(_documents(source))


def list_units(context: Context) -> list[Unit]:
    """One unit for each task."""
    units = []
    for path in _documents(context.source):
        for number, task in enumerate(read_json(path)):
            key = f"{context.relative(path)}#{task.get('id', number)}"
            name = _image_name(task)
            image = _find(name, path, context)
            read = partial(_read, task, name or key, image, context)
            units.append(Unit(key, (path, *([image] if image else [])), read))
    return units


def decode_brush(code: Any, height: int, width: int) -> Mask:
    """(H, W) of a brush's run-length code: a list of bytes; DataError when it does not fit."""
    try:
        bits = "".join(f"{byte:08b}" for byte in bytes(code))
        count, word = int(bits[:32], 2), int(bits[32:37], 2) + 1
        sizes = [int(bits[37 + 4 * n : 41 + 4 * n], 2) + 1 for n in range(4)]
    except (ValueError, TypeError) as error:
        raise DataError("the brush's code is damaged") from error
    if count != height * width * 4:
        raise DataError("the brush is of another size than its image")
    values, at, place = np.zeros(count, np.uint8), 53, 0
    try:
        while place < count:
            same, size = bits[at] == "1", sizes[int(bits[at + 1 : at + 3], 2)]
            run = int(bits[at + 3 : at + 3 + size], 2) + 1
            at += 3 + size
            for first in (place,) if same else range(place, place + run):
                last = place + run if same else first + 1
                values[first:last] = min(int(bits[at : at + word], 2), 255)
                at += word
            place += run
    except (ValueError, IndexError) as error:
        raise DataError("the brush's code is cut off") from error
    opaque: Mask = values.reshape(height, width, 4)[..., 3] > 0
    return opaque


def _documents(source: Path) -> list[Path]:
    found = [source] if source.is_file() else sorted(source.glob("*.json"))
    return [path for path in found if path.suffix == ".json" and _is_export(path)]


def _is_export(path: Path) -> bool:
    try:
        tasks = read_json(path)
    except DataError:
        return False
    return (
        isinstance(tasks, list)
        and bool(tasks)
        and all(isinstance(task, dict) and "data" in task for task in tasks)
    )


def _image_name(task: Entry) -> str:
    """File name of a task's image, from an upload, a local path or an address."""
    data = task.get("data")
    values = data.values() if isinstance(data, dict) else ()
    for value in (task.get("file_upload"), *values):
        if isinstance(value, str) and re.search(r"\.[A-Za-z]{3,4}$", value.split("?d=")[-1]):
            address = urlsplit(value)
            local = parse_qs(address.query).get("d", [address.path or value])[0]
            return unquote(local)
    return ""


def _find(name: str, document: Path, context: Context) -> Path | None:
    """An uploaded file got eight digits in front, which the original lacks."""
    base = name.rsplit("/", 1)[-1]
    for wanted in (name, base, _UPLOAD.sub("", base)):
        if wanted and (path := find_image(wanted, document, context)):
            return path
    return None


def _read(task: Entry, name: str, path: Path | None, context: Context) -> Iterator[Sample | Flaw]:
    if path is None:
        yield Flaw(name, "the image file is missing; --images says where images lie", "image")
        return
    results = _results(task)
    if not results:
        yield Flaw(name, "the task has no annotation", "image")
        return
    image = read_image(path)
    masks: list[LabelledMask] = []
    for number, result in enumerate(results):
        file = f"{name}#{result.get('id', number)}"
        try:
            mask = _mask(result, image.height, image.width)
            labels = [context.label(raw) for raw in _labels(result)]
            masks += [LabelledMask(label, mask, file) for label in labels if label is not None]
        except DataError as error:
            yield Flaw(file, str(error))
        except (KeyError, TypeError, ValueError):
            yield Flaw(file, "the shape is damaged")
    data = task["data"]
    split = str(data.get("split") or "")
    yield Sample(
        name=_UPLOAD.sub("", path.stem),
        image=image.display,
        masks=tuple(masks),
        modality=str(data.get("modality") or image.modality or ""),
        patient=str(data.get("patient") or data.get("patient_id") or ""),
        split=split if split in ("train", "val", "test") else "",
        licence=str(data.get("licence") or data.get("license") or ""),
    )


def _results(task: Entry) -> list[Entry]:
    """Shapes with labels of the annotation that counts."""
    made = task.get("annotations") or task.get("completions") or []
    valid = [a for a in made if isinstance(a, dict) and not a.get("was_cancelled")]
    if not valid:
        return []
    chosen = max(valid, key=lambda a: (bool(a.get("ground_truth")), str(a.get("updated_at") or "")))
    results = [r for r in chosen.get("result") or [] if isinstance(r, dict)]
    return [r for r in results if isinstance(r.get("value"), dict) and _labels(r)]


def _labels(result: Entry) -> list[str]:
    for key, names in result["value"].items():
        if key.endswith("labels") and isinstance(names, list):
            return [str(name) for name in names]
    return []


def _mask(result: Entry, height: int, width: int) -> Mask:
    value = result["value"]
    stated = (result.get("original_height", height), result.get("original_width", width))
    if stated != (height, width):
        raise DataError(
            f"the shape is of a {stated[1]} x {stated[0]} image, the file has {width} x {height}"
        )
    if result.get("image_rotation") or value.get("image_rotation"):
        raise DataError("the image was turned in Label Studio; turn it back or turn the file")
    if "rle" in value:
        return decode_brush(value["rle"], height, width)
    across, down = width / 100, height / 100
    if "points" in value:
        flat = [number for x, y in value["points"] for number in (x * across, y * down)]
        return fill_polygons([flat], height, width)
    x, y, turn = value["x"] * across, value["y"] * down, float(value.get("rotation") or 0)
    if "radiusX" in value:
        radii = value["radiusX"] * across, value["radiusY"] * down
        return fill_ellipse(x, y, *radii, turn, height, width)
    size = value["width"] * across, value["height"] * down
    return fill_rectangle(x, y, *size, turn, height, width)
