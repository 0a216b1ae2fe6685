"""The selection rule applied: which targets of an image stay, and whether the image does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medisee.data.importers.options import Selection
from medisee.data.importers.units import LabelledMask

__all__ = ["completeness", "contrast", "crowding_fault", "image_fault", "target_fault", "unions"]


def unions(masks: Sequence[LabelledMask]) -> dict[str, NDArray[np.bool_]]:
    """Label -> union of its instances, bool (H, W), in the order of the masks."""
    found: dict[str, NDArray[np.bool_]] = {}
    for entry in masks:
        known = found.get(entry.label)
        found[entry.label] = entry.mask if known is None else known | entry.mask
    return found


def target_fault(mask: NDArray[np.bool_], rule: Selection) -> str:
    """Why the rule leaves a target out, "" when it stays."""
    share = float(mask.mean())
    if share < rule.min_area:
        return "target smaller than the least area"
    if share > rule.max_area:
        return "target larger than the most area"
    if completeness(mask) < rule.min_completeness:
        return "target cut off by the edge of the image"
    return ""


def image_fault(
    image: NDArray[np.uint8], labels: Sequence[str], counts: Mapping[str, int], rule: Selection
) -> str:
    """Why the rule leaves an image with these targets out; counts: images of each label so far."""
    if contrast(image) < rule.min_contrast:
        return "image with too little contrast"
    if not labels:
        return "image without a target that stays"
    return crowding_fault(labels, counts, rule)


def crowding_fault(labels: Sequence[str], counts: Mapping[str, int], rule: Selection) -> str:
    """Whether each of an image's targets has as many images as the rule wants: why it is out."""
    most = rule.per_category
    if most and labels and all(counts.get(label, 0) >= most for label in labels):
        return "categories that have enough images"
    return ""


def contrast(image: NDArray[np.uint8]) -> float:
    """Grey levels between the 1st and the 99th percentile of the display."""
    grey = image if image.ndim == 2 else image.mean(axis=2)
    low, high = np.percentile(grey, (1, 99))
    return float(high - low)


def completeness(mask: NDArray[np.bool_]) -> float:
    """Share of a mask's outline pixels that do not lie on the edge of the image."""
    outline = int((mask & ~_eroded(mask)).sum())
    if not outline:
        return 0.0
    frame = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    return 1 - int(frame.sum()) / outline


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose four neighbours are all inside; what lies beyond the image is outside."""
    padded = np.pad(mask, 1)
    inner: NDArray[np.bool_] = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1]
    return inner & padded[1:-1, :-2] & padded[1:-1, 2:]
