"""Samples to SA-Med2D-20M's layout; every file appears by renaming.

OUT/images/<modality>_00--<source>--<name>.png
OUT/masks/<image stem>--<class id>_<instance>.png
OUT/index.jsonl, SAMed2D_v1.json, SAMed2D_v1_class_mapping_id.json
OUT/work/import-<source>.jsonl (journal), import-<source>.json (report)
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medisee.boxes import mask_to_box
from medisee.data.importers.classes import body_part_of
from medisee.data.importers.journal import Journal, read_lines, stamp_of, write_whole
from medisee.data.importers.options import Selection
from medisee.data.importers.report import ImportReport
from medisee.data.importers.selection import crowding_fault, image_fault, target_fault, unions
from medisee.data.importers.units import Context, Flaw, LabelledMask, Sample, Unit, Unread
from medisee.data.licences import may_be_passed_on
from medisee.errors import DataError, MediSeeError

__all__ = ["Writer", "split_of"]

_PREFIXES = {"ultrasound": "us", "": "image"}
_MASK_ID = re.compile(r"--(\d+)_\d+\.png$")
_LONGEST_NAME = 120


class Writer:
    """One source into one folder; knows what was done before."""

    def __init__(self, to: Path, source: str, form: str, context: Context) -> None:
        """DataError when `to` holds a data set that no import made, or other options did."""
        self._to, self._source, self._form, self._context = to, source, form, context
        work = to / "work"
        if (to / "index.jsonl").exists() and not list(work.glob("import-*.jsonl")):
            raise DataError(f"{to}: holds a data set that was not imported; choose another folder")
        for folder in ("images", "masks"):
            (to / folder).mkdir(parents=True, exist_ok=True)
        settings = {"source": source, "format": form, **context.options.settings()}
        self._journal = Journal(work / f"import-{source}.jsonl", settings)
        self._counts = Counter(self._labels_done())
        self._ids = dict(_ids_of(work))

    def begin(self, units: list[Unit]) -> list[Unit]:
        """The units still to do, in a fixed order that favours no part of the source.

        Units whose files changed since are done again; what they had given is removed.
        """
        todo = [unit for unit in units if not self._journal.done(unit)]
        for line in self._journal.forget({unit.key for unit in todo}):
            for entry in line["images"]:
                for file in (entry["image"], *(mask["file"] for mask in entry["masks"])):
                    (self._to / file).unlink(missing_ok=True)
        self._counts = Counter(self._labels_done())
        return sorted(todo, key=lambda unit: sha256(f"{self._source}/{unit.key}".encode()).digest())

    def add(self, unit: Unit) -> None:
        """Read, select and write one unit, then remember it."""
        line: dict[str, Any] = {
            "unit": unit.key,
            "stamp": stamp_of(unit),
            "images": [],
            "left_out_images": [],
            "left_out_targets": [],
            "flaws": [],
        }
        self._add_all(unit.key, unit.read, line)
        self._journal.add(line)

    def finish(self) -> ImportReport:
        """Write index, json files and report from the journals of all sources in the folder."""
        work = self._to / "work"
        write_whole(self._to / "index.jsonl", _index_lines(work))
        write_whole(self._to / "SAMed2D_v1.json", _pair_lines(work))
        mapping = json.dumps(dict(sorted(self._ids.items())), indent=1, ensure_ascii=False)
        write_whole(self._to / "SAMed2D_v1_class_mapping_id.json", iter([mapping + "\n"]))
        report = ImportReport(self._source, self._form).add_all(self._journal)
        text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False)
        write_whole(work / f"import-{self._source}.json", iter([text + "\n"]))
        return report

    def _labels_done(self) -> Iterator[str]:
        for line in self._journal:
            for entry in line["images"]:
                yield from {mask["label"] for mask in entry["masks"]}

    def _add_all(
        self,
        name: str,
        read: Callable[[], Iterator[Sample | Unread | Flaw]],
        line: dict[str, Any],
    ) -> None:
        """Everything that `read` gives; what it raises is a flaw of the image or volume `name`."""
        try:
            for item in read():
                if isinstance(item, Flaw):
                    line["flaws"].append([item.file, item.reason, item.what])
                elif isinstance(item, Sample):
                    self._add_sample(item, line)
                elif fault := crowding_fault(item.labels, self._counts, self._rule):
                    line["left_out_images"].append(fault)
                else:
                    self._add_all(item.name, item.load, line)
        except MediSeeError as error:
            line["flaws"].append([name, _without_name(str(error), name), "image"])

    @property
    def _rule(self) -> Selection:
        return self._context.options.selection

    def _add_sample(self, sample: Sample, line: dict[str, Any]) -> None:
        sound = []
        line["left_out_targets"] += sample.left_out
        for entry in sample.masks:
            if fault := _mask_fault(entry.mask, sample.image):
                line["flaws"].append([entry.file, f"{entry.label}: {fault}", "mask"])
            else:
                sound.append(entry)
        if not sound:
            line["flaws"].append([sample.name, "no mask of this image can be used", "image"])
            return
        faults = {label: target_fault(mask, self._rule) for label, mask in unions(sound).items()}
        kept = [entry for entry in sound if not faults[entry.label]]
        line["left_out_targets"] += [fault for fault in faults.values() if fault]
        labels = list(dict.fromkeys(entry.label for entry in kept))
        if fault := image_fault(sample.image, labels, self._counts, self._rule):
            line["left_out_images"].append(fault)
            return
        self._counts.update(labels)
        line["images"].append(self._write(sample, kept))

    def _write(self, sample: Sample, masks: list[LabelledMask]) -> dict[str, Any]:
        """The files of one image; its line of the index."""
        options = self._context.options
        labels = list(dict.fromkeys(entry.label for entry in masks))
        modality = options.modality or sample.modality
        stem = f"{_prefix(modality)}_00--{self._source}--{_plain(sample.name)}"
        _save(self._to / "images" / f"{stem}.png", _grey_or_colour(sample.image))
        patient = sample.patient or options.patient_of(sample.name)
        height, width = sample.image.shape[:2]
        licence = options.licence or sample.licence or "not stated"
        return {
            "image": f"images/{stem}.png",
            "width": width,
            "height": height,
            "modality": modality,
            "body_part": options.body_part
            or sample.body_part
            or body_part_of(labels, self._context.table),
            "plane": sample.plane,
            "source": self._source,
            "patient": f"{self._source}/{patient}" if patient else "",
            "labelled_by": options.labelled_by,
            "licence": licence,
            "redistributable": may_be_passed_on(licence),
            "split": sample.split or split_of(self._source, patient or sample.name),
            "masks": self._write_masks(stem, masks),
        }

    def _write_masks(self, stem: str, masks: list[LabelledMask]) -> list[dict[str, Any]]:
        instances: Counter[str] = Counter()
        entries = []
        for entry in masks:
            number = self._ids.setdefault(entry.label, max(self._ids.values(), default=0) + 1)
            file = f"masks/{stem}--{number:04d}_{instances[entry.label]:03d}.png"
            instances[entry.label] += 1
            _save(self._to / file, Image.fromarray(entry.mask))
            box = mask_to_box(entry.mask) or (0.0, 0.0, 0.0, 0.0)
            entries.append({"file": file, "label": entry.label, "box": [int(edge) for edge in box]})
        return entries


def split_of(source: str, patient: str) -> str:
    """train, val or test (8 : 1 : 1) by hash, the same wherever the same patient is imported."""
    digest = sha256(f"{source}/{patient}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if place < 0.8 else "val" if place < 0.9 else "test"


def _mask_fault(mask: NDArray[np.bool_], image: NDArray[np.uint8]) -> str:
    if mask.shape != image.shape[:2]:
        (h, w), (height, width) = mask.shape, image.shape[:2]
        return f"the mask is {w} x {h}, its image {width} x {height} pixels"
    return "" if mask.any() else "the mask is empty"


def _without_name(message: str, key: str) -> str:
    """A message without the file's name in front, which stands beside it anyway."""
    return message.removeprefix(f"{Path(key).name}: ").removeprefix(f"{key}: ")


def _prefix(modality: str) -> str:
    """As SA-Med2D-20M begins its file names: ct, mr, us, x_ray..."""
    word = "mr" if modality.startswith("MR") else _PREFIXES.get(modality, modality)
    return re.sub("[^a-z0-9]+", "_", word.lower()).strip("_") or "image"


def _plain(name: str) -> str:
    """A name that any file system takes and that holds no `--`; a changed one gets a hash."""
    plain = re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "_", name)).strip(".-")
    plain = plain[:_LONGEST_NAME]
    return plain if plain == name else f"{plain}_{sha256(name.encode()).hexdigest()[:8]}"


def _grey_or_colour(image: NDArray[np.uint8]) -> Image.Image:
    if image.ndim == 3 and (image == image[..., :1]).all():
        image = image[..., 0]
    return Image.fromarray(np.ascontiguousarray(image))


def _save(path: Path, image: Image.Image) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        image.save(partial, "PNG")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _entries(work: Path) -> Iterator[dict[str, Any]]:
    """The index lines of all sources, source by source."""
    for journal in sorted(work.glob("import-*.jsonl")):
        for line in read_lines(journal):
            yield from line["images"]


def _ids_of(work: Path) -> Iterator[tuple[str, int]]:
    for entry in _entries(work):
        for mask in entry["masks"]:
            if match := _MASK_ID.search(mask["file"]):
                yield mask["label"], int(match[1])


def _index_lines(work: Path) -> Iterator[str]:
    return (json.dumps(entry, ensure_ascii=False) + "\n" for entry in _entries(work))


def _pair_lines(work: Path) -> Iterator[str]:
    """SA-Med2D's own object image -> masks, without holding it in memory."""
    before = "{\n"
    for entry in _entries(work):
        files = [mask["file"] for mask in entry["masks"]]
        yield f"{before}{json.dumps(entry['image'])}: {json.dumps(files, indent=0)}"
        before = ",\n"
    yield "{}\n" if before == "{\n" else "\n}\n"
