"""Areas blacked out before anybody looks at an image: names and dates written into the pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medisee.errors import InputError
from medisee.structures import MedicalImage

__all__ = ["ANNOTATIONS", "Box", "hide_boxes", "hide_outside", "parse_hide"]

Box = tuple[int, int, int, int]
"""xyxy in pixels, right and bottom exclusive."""

ANNOTATIONS = "annotations"
"""Stands for everything outside the ultrasound regions that a DICOM file states."""


def parse_hide(areas: Iterable[str]) -> tuple[tuple[Box, ...], bool]:
    """Areas "X1,Y1,X2,Y2" as boxes, and whether "annotations" is among them."""
    words = [area.strip() for area in areas]
    boxes = [_box(word) for word in words if word != ANNOTATIONS]
    return tuple(boxes), ANNOTATIONS in words


def _box(text: str) -> Box:
    try:
        x1, y1, x2, y2 = (int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"an area to hide is X1,Y1,X2,Y2 in pixels, or {ANNOTATIONS}") from None
    if not (0 <= x1 < x2 and 0 <= y1 < y2):
        raise InputError("an area to hide goes from its left top to its right bottom pixel")
    return x1, y1, x2, y2


def hide_boxes(image: MedicalImage, boxes: Sequence[Box]) -> MedicalImage:
    """The image with the boxes black, in its pixels as in its display."""
    hidden = np.zeros(image.pixels.shape[:2], bool)
    for x1, y1, x2, y2 in boxes:
        hidden[y1:y2, x1:x2] = True
    return _hide(image, hidden)


def hide_outside(image: MedicalImage, boxes: Sequence[Box]) -> MedicalImage:
    """The image with all but the boxes black."""
    hidden = np.ones(image.pixels.shape[:2], bool)
    for x1, y1, x2, y2 in boxes:
        hidden[y1:y2, x1:x2] = False
    return _hide(image, hidden)


def _hide(image: MedicalImage, hidden: NDArray[np.bool_]) -> MedicalImage:
    if not hidden.any():
        return image
    pixels, display = image.pixels.copy(), image.display.copy()
    pixels[hidden] = pixels.min()
    display[hidden] = 0
    note = f"{hidden.mean():.0%} of the image was hidden"
    return replace(image, pixels=pixels, display=display, notes=(*image.notes, note))
