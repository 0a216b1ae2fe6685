"""Boxes: formats, mask -> box, IoU and generalized IoU; diameters of masks. Only numpy.

`xyxy` is in pixels of the original image, right and bottom exclusive. `cxcywh` is relative to the
image (0..1) and lives inside heads and losses only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "box_iou",
    "cxcywh_to_xyxy",
    "generalized_box_iou",
    "mask_diameters",
    "mask_to_box",
    "xyxy_to_cxcywh",
]

Boxes = NDArray[np.float64]


def xyxy_to_cxcywh(boxes: ArrayLike, height: float, width: float) -> Boxes:
    """Pixel corners (..., 4) to relative centre and size (..., 4) of a `height` x `width` image."""
    x1, y1, x2, y2 = np.moveaxis(_as_boxes(boxes), -1, 0)
    return np.stack(
        [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height], -1
    )


def cxcywh_to_xyxy(boxes: ArrayLike, height: float, width: float) -> Boxes:
    """Relative centre and size (..., 4) to pixel corners (..., 4) of a `height` x `width` image."""
    cx, cy, w, h = np.moveaxis(_as_boxes(boxes), -1, 0)
    return np.stack(
        [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height],
        -1,
    )


def mask_to_box(mask: ArrayLike) -> tuple[float, float, float, float] | None:
    """Tight xyxy box around the true pixels of a (H, W) mask; None when there are none."""
    array = np.asarray(mask, dtype=bool)
    if array.ndim != 2:
        raise ValueError(f"a mask has the shape (H, W), not {array.shape}")
    rows = np.flatnonzero(array.any(axis=1))
    columns = np.flatnonzero(array.any(axis=0))
    if rows.size == 0:
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def mask_diameters(mask: ArrayLike, spacing: tuple[float, float]) -> tuple[float, float]:
    """Longest diameter of a mask (H, W), and its extent across that one, in mm.

    Measured from edge to edge of the pixels, in steps of one degree (exact to 0.02 %); (0, 0)
    for an empty mask. spacing: (row, column) in mm.
    """
    array = np.asarray(mask, dtype=bool)
    rows = np.flatnonzero(array.any(axis=1))
    if rows.size == 0:
        return 0.0, 0.0
    inside = array[rows]
    left = inside.argmax(axis=1)
    right = inside.shape[1] - inside[:, ::-1].argmax(axis=1)
    # The outermost corners of each row hold the corners of the convex hull.
    x = np.concatenate([left, left, right, right]) * spacing[1]
    y = np.concatenate([rows, rows + 1, rows, rows + 1]) * spacing[0]
    angles = np.deg2rad(np.arange(180))
    along = np.outer(np.cos(angles), x) + np.outer(np.sin(angles), y)
    widths = np.ptp(along, axis=1)
    longest = int(widths.argmax())
    return float(widths[longest]), float(widths[(longest + 90) % 180])


def box_iou(first: ArrayLike, second: ArrayLike) -> Boxes:
    """Pairwise IoU (N, M) of xyxy boxes (N, 4) and (M, 4); 0 where both boxes are empty."""
    intersection, union = _intersection_union(first, second)
    return _ratio(intersection, union)


def generalized_box_iou(first: ArrayLike, second: ArrayLike) -> Boxes:
    """Pairwise generalized IoU (N, M) in [-1, 1] of xyxy boxes (N, 4) and (M, 4).

    IoU minus the share of the smallest enclosing box that the union leaves empty
    (Rezatofighi et al. 2019, algorithm 1).
    """
    a, b = _as_boxes(first)[:, None], _as_boxes(second)[None]
    intersection, union = _intersection_union(first, second)
    enclosing = _area(np.minimum(a[..., :2], b[..., :2]), np.maximum(a[..., 2:], b[..., 2:]))
    return _ratio(intersection, union) - _ratio(enclosing - union, enclosing)


def _intersection_union(first: ArrayLike, second: ArrayLike) -> tuple[Boxes, Boxes]:
    a, b = _as_boxes(first)[:, None], _as_boxes(second)[None]
    top_left = np.maximum(a[..., :2], b[..., :2])
    bottom_right = np.minimum(a[..., 2:], b[..., 2:])
    intersection = _area(top_left, bottom_right)
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - intersection
    return intersection, union


def _area(top_left: Boxes, bottom_right: Boxes) -> Boxes:
    return np.clip(bottom_right - top_left, 0, None).prod(axis=-1)


def _ratio(part: Boxes, whole: Boxes) -> Boxes:
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)


def _as_boxes(boxes: ArrayLike) -> Boxes:
    array = np.asarray(boxes, dtype=np.float64)
    if array.ndim == 0 or array.shape[-1] != 4:
        raise ValueError(f"boxes have the shape (..., 4), not {array.shape}")
    return array
