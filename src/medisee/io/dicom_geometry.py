"""Where the pixels of a DICOM frame lie in the patient, and where only the scanner wrote.

`header` is a pydicom dataset in which the frame's functional groups are already flattened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medisee.io.orientation import from_dicom_cosines
from medisee.structures import Orientation

__all__ = ["affine_of", "even_step", "orientation_of", "position_of", "regions_of", "spacing_of"]

Box = tuple[int, int, int, int]

_CENTIMETRE = 3  # Physical Units of an ultrasound region, PS3.3 C.8.5.5.1.15
_TWO_DIMENSIONAL, _TISSUE = 1, 1
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def spacing_of(header: Any) -> tuple[tuple[float, float] | None, str]:
    """(row, column) in mm, and a note where it is not that of the patient's plane."""
    for keyword, note in (
        ("PixelSpacing", ""),
        ("ImagerPixelSpacing", "spacing at the detector: the patient's is smaller"),
    ):
        value = _numbers(header, keyword, 2)
        if value is not None and min(value) > 0:
            return (value[0], value[1]), note
    return _ultrasound_spacing(header), ""


def _ultrasound_spacing(header: Any) -> tuple[float, float] | None:
    """Of the two-dimensional tissue regions, where all have the same."""
    found = {
        (abs(float(region.PhysicalDeltaY)) * 10, abs(float(region.PhysicalDeltaX)) * 10)
        for region in header.get("SequenceOfUltrasoundRegions") or ()
        if region.get("RegionSpatialFormat") == _TWO_DIMENSIONAL
        and region.get("RegionDataType") == _TISSUE
        and region.get("PhysicalUnitsXDirection") == _CENTIMETRE
        and region.get("PhysicalUnitsYDirection") == _CENTIMETRE
        and region.get("PhysicalDeltaX")
        and region.get("PhysicalDeltaY")
    }
    return found.pop() if len(found) == 1 else None


def regions_of(header: Any) -> list[Box]:
    """The ultrasound regions, xyxy in pixels: outside of them the scanner writes."""
    names = ("RegionLocationMinX0", "RegionLocationMinY0",
             "RegionLocationMaxX1", "RegionLocationMaxY1")  # fmt: skip
    boxes = []
    for region in header.get("SequenceOfUltrasoundRegions") or ():
        edges = [region.get(name) for name in names]
        if all(isinstance(edge, int) for edge in edges):
            x1, y1, x2, y2 = edges
            boxes.append((x1, y1, x2 + 1, y2 + 1))
    return boxes


def orientation_of(header: Any) -> Orientation | None:
    """From the direction cosines, else from the letters of Patient Orientation."""
    cosines = _numbers(header, "ImageOrientationPatient", 6)
    if cosines is not None:
        return from_dicom_cosines(cosines)
    return _from_letters(header.get("PatientOrientation"))


def _from_letters(letters: Any) -> Orientation | None:
    """PatientOrientation: where rows and columns point, main direction first, as in AF\\P."""
    words = [str(word)[:1] for word in letters or ()]
    opposite: dict[str, Any] = {"L": "R", "R": "L", "A": "P", "P": "A", "H": "F", "F": "H"}
    if len(words) != 2 or any(word not in opposite for word in words):
        return None
    try:
        return Orientation(left=opposite[words[0]], top=opposite[words[1]])
    except ValueError:
        return None


def position_of(header: Any) -> NDArray[np.float64] | None:
    """(3,) LPS+ mm of the centre of the first pixel."""
    position = _numbers(header, "ImagePositionPatient", 3)
    return None if position is None else np.asarray(position)


def even_step(positions: Sequence[NDArray[np.float64]], pixel_mm: float) -> NDArray[Any] | None:
    """(3,) LPS+ mm from each slice to the next; None where one lies half a pixel off."""
    places = np.asarray(positions)
    step = (places[-1] - places[0]) / (len(places) - 1)
    off = places - (places[0] + np.arange(len(places))[:, None] * step)
    most = 0.5 * min(pixel_mm, float(np.linalg.norm(step)))
    return step if float(np.linalg.norm(off, axis=1).max()) <= most and most > 0 else None


def affine_of(header: Any, step: NDArray[Any] | None = None) -> NDArray[np.float64] | None:
    """(4, 4) from (row, column, slice) to RAS+ mm; None where the header states too little.

    step: LPS+ mm from slice to slice; by default along the normal, as thick as the slice.
    """
    cosines = _numbers(header, "ImageOrientationPatient", 6)
    spacing = _numbers(header, "PixelSpacing", 2)
    position = position_of(header)
    if cosines is None or spacing is None or position is None or min(spacing) <= 0:
        return None
    to_the_right, downwards = np.asarray(cosines).reshape(2, 3)
    if from_dicom_cosines(cosines) is None:
        return None
    if step is None:
        step = np.cross(to_the_right, downwards) * _thickness(header)
    columns = [downwards * spacing[0], to_the_right * spacing[1], step, position]
    affine = np.eye(4)
    affine[:3] = np.stack([column * _LPS_TO_RAS for column in columns], axis=1)
    return affine


def _thickness(header: Any) -> float:
    """Slice to slice in mm; 1 where the header says nothing."""
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        value = _numbers(header, keyword, 1)
        if value is not None and value[0] > 0:
            return value[0]
    return 1.0


def _numbers(header: Any, keyword: str, count: int) -> list[float] | None:
    """The finite values of an element that should have `count` of them."""
    value = header.get(keyword)
    if value is None or value == "":
        return None
    try:
        numbers = [float(v) for v in (value if count > 1 else [value])]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and np.isfinite(numbers).all() else None
