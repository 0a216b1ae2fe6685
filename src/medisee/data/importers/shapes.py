"""Outlines and run lengths, as annotation files hold them, to masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medisee.errors import DataError
from medisee.structures import decode_rle

__all__ = ["fill_ellipse", "fill_polygons", "fill_rectangle", "read_coco_rle"]

Mask = NDArray[np.bool_]


def fill_polygons(polygons: Sequence[Any], height: int, width: int) -> Mask:
    """(H, W) union of polygons, each a flat list x1, y1, x2, y2... in pixels (COCO's rule)."""
    from pycocotools import mask as coco

    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
            raise DataError("a polygon needs three points or more, as x, y, x, y...")
    if not polygons:
        raise DataError("the outline is empty")
    # Points far outside are brought near: pycocotools walks along all of the line.
    size = np.array([width, height], dtype=np.float64)
    cut = [np.clip(np.reshape(p, (-1, 2)), -size, 2 * size).ravel().tolist() for p in polygons]
    filled: Mask = coco.decode(coco.merge(coco.frPyObjects(cut, height, width))).astype(bool)
    return filled


def fill_rectangle(
    x: float, y: float, wide: float, high: float, degrees: float, height: int, width: int
) -> Mask:
    """A rectangle in pixels, turned clockwise about its upper left corner."""
    corners = [(0.0, 0.0), (wide, 0.0), (wide, high), (0.0, high)]
    return fill_polygons([_turned(corners, x, y, degrees)], height, width)


def fill_ellipse(
    x: float, y: float, across: float, down: float, degrees: float, height: int, width: int
) -> Mask:
    """An ellipse with radii `across` and `down` in pixels, turned clockwise about its centre."""
    steps = [2 * math.pi * step / 72 for step in range(72)]
    points = [(across * math.cos(angle), down * math.sin(angle)) for angle in steps]
    return fill_polygons([_turned(points, x, y, degrees)], height, width)


def read_coco_rle(rle: Any, height: int, width: int) -> Mask:
    """COCO's run lengths, compressed (text) or not (numbers), of an image of this size."""
    from pycocotools import mask as coco

    try:
        size, counts = [int(n) for n in rle["size"]], rle["counts"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("run lengths need size and counts") from error
    if size != [height, width]:
        raise DataError(f"the mask is {size[-1]} x {size[0]}, its image {width} x {height} pixels")
    if isinstance(counts, list):
        if any(not isinstance(n, int) or n < 0 for n in counts) or sum(counts) != height * width:
            raise DataError("the run lengths do not add up to the size of the image")
        return coco.decode(coco.frPyObjects({"size": size, "counts": counts}, height, width)) > 0
    try:
        return decode_rle({"size": size, "counts": counts})
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError("the run lengths are damaged") from error


def _turned(
    points: Sequence[tuple[float, float]], x: float, y: float, degrees: float
) -> list[float]:
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [
        value
        for px, py in points
        for value in (x + px * cosine - py * sine, y + px * sine + py * cosine)
    ]
