"""DICOM series with the segmentations (DICOM-SEG) that refer to them; pydicom alone.

A frame of a segmentation is laid on its image by patient coordinates, so mirrored, turned and
cropped frames fall where they belong; one that lies between pixels or slices is refused. The
patient is a pseudonym made of the study's UID, never of a name or number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medisee.data.importers.units import Context, Flaw, LabelledMask, Sample, Unit, damaged
from medisee.data.importers.volumes import choose_slices, to_square, window_of
from medisee.errors import DataError, MediSeeError
from medisee.io import read_image
from medisee.io.orientation import RADIOLOGICAL, to_display

__all__ = ["list_units", "place_frame", "recognises"]

_HEAD = [
    "ImageOrientationPatient", "ImagePositionPatient", "Modality", "PatientID", "PixelSpacing",
    "ReferencedSeriesSequence", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID",
]  # fmt: skip
_SIDES = {"7771000": "left", "24028007": "right"}  # SNOMED CT's modifiers
_MODIFIERS = "SegmentedPropertyTypeModifierCodeSequence"
_OFF_GRID = 0.1  # of a pixel, at most


@dataclass(frozen=True)
class _File:
    path: Path
    head: Any

    @property
    def is_segmentation(self) -> bool:
        return self.head.get("Modality") == "SEG"

    @property
    def refers_to(self) -> str:
        found = self.head.get("ReferencedSeriesSequence") or []
        return str(found[0].get("SeriesInstanceUID", "")) if found else ""


@dataclass(frozen=True, eq=False)
class _Plane:
    """Where a frame's pixels lie: position of the first, steps (mm) along columns and rows."""

    origin: NDArray[np.float64]
    along: NDArray[np.float64]
    down: NDArray[np.float64]

    @classmethod
    def of(cls, position: Any, cosines: Any, spacing: Any) -> _Plane:
        row, column = np.asarray(cosines, np.float64).reshape(2, 3)
        row_mm, column_mm = (float(value) for value in spacing)
        return cls(np.asarray(position, np.float64), row * column_mm, column * row_mm)

    def locate(self, points: NDArray[np.float64]) -> NDArray[np.floating[Any]]:
        """(n, 3) mm to (n, 3): column, row, and distance to the plane in columns."""
        normal = np.cross(self.along, self.down)
        normal *= np.linalg.norm(self.along) / np.linalg.norm(normal)
        axes = np.stack([self.along, self.down, normal], axis=1)
        return np.linalg.solve(axes, (points - self.origin).T).T


def recognises(source: Path) -> bool:
    """Whether one of the folder's first files is DICOM."""
    if not source.is_dir():
        return False
    files = (path for path in sorted(source.rglob("*")) if path.is_file())
    return any(_is_dicom(path) for _, path in zip(range(50), files, strict=False))


def list_units(context: Context) -> list[Unit]:
    """One unit for each series with its segmentations, for each series and file without any."""
    files, units = [], []
    for path in sorted(path for path in context.source.rglob("*") if path.is_file()):
        if _is_dicom(path):
            try:
                files.append(_File(path, _head(path, context.relative(path))))
            except DataError as error:
                units.append(_flawed(context.relative(path), path, str(error)))
    patients = _pseudonyms(files)
    series: dict[str, list[_File]] = {}
    segmented: dict[str, list[_File]] = {}
    for file in files:
        group = segmented if file.is_segmentation else series
        uid = file.refers_to if file.is_segmentation else str(file.head.get("SeriesInstanceUID"))
        group.setdefault(uid, []).append(file)
    for uid, images in series.items():
        key, found = context.relative(images[0].path), segmented.pop(uid, [])
        if not found:
            units.append(_flawed(key, images[0].path, "no segmentation refers to this series"))
            continue
        patient = patients[_identity(images[0])]
        read = partial(_read, images, found, patient, _pseudonym(uid), context)
        units.append(Unit(key, tuple(file.path for file in (*images, *found)), read))
    for lost in (file for group in segmented.values() for file in group):
        name = context.relative(lost.path)
        units.append(_flawed(name, lost.path, "the series that it segments is not there", "mask"))
    return units


def place_frame(
    frame: NDArray[np.bool_], at: _Plane, on: _Plane, shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """A frame (h, w) on the grid (H, W) of its image, bool; DataError when it does not fit."""
    corners = np.stack([at.origin, at.origin + at.along, at.origin + at.down])
    first, column, row = on.locate(corners)
    ends = np.array([[0, 0], [frame.shape[1] - 1, frame.shape[0] - 1]], np.float64)
    steps = np.stack([column - first, row - first])
    far = first + ends @ steps
    rounded, offset = np.rint(steps[:, :2]), np.rint(first[:2])
    straight = np.abs(far - np.rint(far)).max() < _OFF_GRID and np.abs(far[:, 2]).max() < _OFF_GRID
    if not straight or sorted(np.abs(rounded).sum(axis=0)) != [1, 1]:
        raise DataError("lies on another grid than its image")
    rows, columns = np.nonzero(frame)
    pixels = (np.stack([columns, rows], axis=1) @ rounded + offset).astype(int)
    if (pixels < 0).any() or (pixels >= shape[::-1]).any():
        raise DataError("reaches beyond its image")
    x, y = pixels.T
    placed = np.zeros(shape, bool)
    placed[y, x] = True
    return placed


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _head(path: Path, name: str) -> Any:
    import pydicom

    with damaged(name):
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_HEAD))


def _flawed(key: str, path: Path, reason: str, what: Any = "image") -> Unit:
    return Unit(key, (path,), lambda: iter([Flaw(key, reason.removeprefix(f"{key}: "), what)]))


def _identity(file: _File) -> str:
    return str(file.head.get("PatientID") or file.head.get("StudyInstanceUID") or file.path)


def _pseudonym(uid: str) -> str:
    return sha256(uid.encode()).hexdigest()[:12]


def _pseudonyms(files: list[_File]) -> dict[str, str]:
    """Who -> a code from the first of their studies: guessable from no name or number."""
    studies: dict[str, list[str]] = {}
    for file in files:
        studies.setdefault(_identity(file), []).append(str(file.head.get("StudyInstanceUID")))
    return {who: _pseudonym(min(uids)) for who, uids in studies.items()}


def _read(
    images: list[_File], found: list[_File], patient: str, name: str, context: Context
) -> Iterator[Sample | Flaw]:
    with damaged(context.relative(images[0].path)):
        planes = [
            _Plane.of(
                f.head.ImagePositionPatient, f.head.ImageOrientationPatient, f.head.PixelSpacing
            )
            for f in images
        ]
        normal = np.cross(planes[0].along, planes[0].down)
        order = sorted(range(len(images)), key=lambda i: float(planes[i].origin @ normal))
    images, planes = [images[i] for i in order], [planes[i] for i in order]
    masks: dict[int, list[LabelledMask]] = {}
    for file in found:
        for item in _segments(file, images, planes, context):
            if isinstance(item, Flaw):
                yield item
            else:
                masks.setdefault(item[0], []).append(item[1])
    labels = sorted({mask.label for group in masks.values() for mask in group})
    if not labels:
        raise DataError("no segment of this series can be used")
    areas = np.zeros((len(labels), len(images)), np.int64)
    for index, group in masks.items():
        for mask in group:
            areas[labels.index(mask.label), index] += int(mask.mask.sum())
    for index in choose_slices(areas, context.options.selection.slices):
        yield _sample(images[index], f"{name}_{index:04d}", masks[index], patient, context)


def _sample(
    file: _File, name: str, masks: list[LabelledMask], patient: str, context: Context
) -> Sample:
    window = context.options.window
    if file.head.get("Modality") == "CT":
        window = window_of([mask.label for mask in masks], context.options, context.table)
    image = read_image(file.path, window=window)
    seen = image.orientation
    if seen is None:
        raise DataError(f"{file.path.name}: states no orientation, so left and right are unknown")

    wanted = RADIOLOGICAL[seen.plane]
    upright = seen.top in (wanted.top, wanted.bottom)
    row_mm, column_mm = image.spacing or (1.0, 1.0)
    spacing = (row_mm, column_mm) if upright else (column_mm, row_mm)

    def turned(flat: NDArray[Any], values: bool) -> NDArray[Any]:
        return to_square(to_display(flat, seen.bottom, seen.right, wanted), *spacing, values)

    return Sample(
        name=name,
        image=turned(image.display, False),
        masks=tuple(LabelledMask(m.label, turned(m.mask, True) > 0, m.file) for m in masks),
        modality=image.modality or "",
        plane=seen.plane,
        patient=patient,
    )


@dataclass(frozen=True, eq=False)
class _Segmentation:
    """A DICOM-SEG: pixels (frames, h, w), what tells of each frame, and the labels by number."""

    name: str
    kind: str
    pixels: NDArray[Any]
    least: float
    frames: Any
    shared: Any
    segments: dict[int, Any]
    shape: tuple[int, int]

    def masks(self, frame: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """(segment number, mask) of a frame; a label map's frame holds several."""
        values = self.pixels[frame]
        if self.kind == "LABELMAP":
            for number in np.unique(values[values > 0]):
                yield int(number), values == number
        else:
            group = self.frames[frame].SegmentIdentificationSequence[0]
            yield int(group.ReferencedSegmentNumber), values >= self.least


def _open_segmentation(file: _File, image: _File, context: Context) -> _Segmentation:
    import pydicom

    name = context.relative(file.path)
    with damaged(name):
        data = pydicom.dcmread(file.path)
        kind = str(data.get("SegmentationType"))
        if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
            raise DataError(f"{name}: only binary, fractional and label map segmentations are read")
        return _Segmentation(
            name,
            kind,
            data.pixel_array.reshape(-1, int(data.Rows), int(data.Columns)),
            int(data.MaximumFractionalValue) / 2 if kind == "FRACTIONAL" else 1,
            data.PerFrameFunctionalGroupsSequence,
            (data.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0],
            {int(segment.SegmentNumber): segment for segment in data.SegmentSequence},
            read_image(image.path).pixels.shape[:2],
        )


def _segments(
    file: _File, images: list[_File], planes: list[_Plane], context: Context
) -> Iterator[tuple[int, LabelledMask] | Flaw]:
    """(slice, mask) of each frame that is not empty; a segment's or a frame's faults."""
    name = context.relative(file.path)
    places = {str(image.head.SOPInstanceUID): index for index, image in enumerate(images)}
    try:
        data = _open_segmentation(file, images[0], context)
    except MediSeeError as error:
        yield Flaw(name, str(error).removeprefix(f"{name}: "))
        return
    labels: dict[int, str | None] = {}
    for number, segment in data.segments.items():
        try:
            labels[number] = _label(segment, number, context)
        except DataError as error:
            yield Flaw(f"{name}#{number}", str(error))
    for frame, groups in enumerate(data.frames[: len(data.pixels)]):
        place = name
        try:
            with damaged(name):
                at, masks = _frame_plane(groups, data.shared), list(data.masks(frame))
            for number, mask in masks:
                place, label = f"{name}#{number}", labels.get(number)
                if label is not None and mask.any():
                    index = _slice_of(groups, at, planes, places)
                    placed = place_frame(mask, at, planes[index], data.shape)
                    yield index, LabelledMask(label, placed, place)
        except DataError as error:
            yield Flaw(place, str(error).removeprefix(f"{name}: "))


def _frame_plane(groups: Any, shared: Any) -> _Plane:
    def item(sequence: str) -> Any:
        return (groups.get(sequence) or shared.get(sequence))[0]

    return _Plane.of(
        item("PlanePositionSequence").ImagePositionPatient,
        item("PlaneOrientationSequence").ImageOrientationPatient,
        item("PixelMeasuresSequence").PixelSpacing,
    )


def _slice_of(groups: Any, at: _Plane, planes: list[_Plane], places: dict[str, int]) -> int:
    """The image that a frame names as its source, else the one in whose plane it lies."""
    for derivation in groups.get("DerivationImageSequence") or []:
        for source in derivation.get("SourceImageSequence") or []:
            if str(source.get("ReferencedSOPInstanceUID")) in places:
                return places[str(source.ReferencedSOPInstanceUID)]
    apart = [abs(float(plane.locate(at.origin[None])[0, 2])) for plane in planes]
    return int(np.argmin(apart))


def _label(segment: Any, number: int, context: Context) -> str | None:
    """By the user's mapping, else code and side, else what the segment is called."""
    called = str(segment.get("SegmentLabel") or "")
    if {called, str(number)} & context.options.classes.keys():
        return context.label(called, "", str(number))
    codes = segment.get("SegmentedPropertyTypeCodeSequence") or []
    modifiers = codes[0].get("SegmentedPropertyTypeModifierCodeSequence") if codes else None
    side = _SIDES.get(str((modifiers or segment.get(_MODIFIERS) or [{}])[0].get("CodeValue")), "")
    meaning = str(codes[0].get("CodeMeaning") or "") if codes else ""
    curated = context.table.by_code(str(codes[0].get("CodeValue")), side) if codes else None
    names = [curated.name] if curated else [context.table.label(f"{side} {meaning}")]
    names.append(context.table.label(called))
    label = next((name for name in names if name in context.table), names[-1])
    if {"left", "right"} <= {side, *label.split(), *names[-1].split()}:
        raise DataError("is called left and coded right, or the other way round")
    return label
