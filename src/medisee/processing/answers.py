"""From a runtime's raw outputs to findings on the original grid, with their scores.

Shape letters: h and w rows and columns of mask logits, H and W of the original image, T targets,
N image tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..boxes import box_iou, cxcywh_to_xyxy, mask_to_box
from ..structures import Finding, RefusalReason
from .pixels import SegmenterInput, restore_mask

Box = tuple[float, float, float, float]

REFUSAL_OPENINGS = {
    RefusalReason.NOT_IN_VIEW: "Nothing",
    RefusalReason.WRONG_MODALITY: "This",
    RefusalReason.NOT_MEDICAL: "That",
    RefusalReason.UNCLEAR: "Please",
}
"""The first word of a refusal tells its reason, so that one position's logits decide."""


@dataclass(frozen=True)
class RawAnswer:
    """What a runtime says of one question, before it is put into words and pixels.

    Attributes:
        decision: (5,) probabilities: it is here, then the reasons of `REFUSAL_OPENINGS`.
        presence: for each target, the probability with which its group was opened.
        boxes: (T, 4) cxcywh in 0..1 of the image; None without a box decoder.
        mask_logits: (T, h, w) on the padded square.
        quality: (T,) the mask decoder's own estimate of IoU.
        similarity: (T, N) over the image tokens.
        handle: what the runtime needs to explain.
        labels: category of each target, where the model tells it from its states.
    """

    decision: np.ndarray
    presence: list[float]
    handle: Any
    boxes: np.ndarray | None = None
    mask_logits: np.ndarray | None = None
    quality: np.ndarray | None = None
    similarity: np.ndarray | None = None
    labels: Sequence[str] = ()

    def refusal(self) -> RefusalReason | None:
        """The reason, where no target was accepted."""
        if self.mask_logits is not None:
            return None
        return list(REFUSAL_OPENINGS)[int(self.decision[1:].argmax())]


def to_findings(
    raw: RawAnswer,
    image: SegmenterInput,
    calibrate: Callable[[float], float],
    mask_boxes: bool = False,
) -> list[Finding]:
    """Masks, boxes and scores on the original grid."""
    drawn = list(_drawn(raw, image))
    labels: list[str | None] = list(raw.labels) or [None] * len(drawn)
    findings = []
    for (mask, box, score, similarity), label in zip(drawn, labels, strict=True):
        shown = (mask_to_box(mask) or box) if mask_boxes else box
        chance = min(max(calibrate(score), 0.0), 1.0)
        findings.append(Finding(mask, shown, chance, similarity, label))
    return findings


def raw_scores(raw: RawAnswer, image: SegmenterInput) -> list[tuple[np.ndarray, float]]:
    """Mask (H, W) bool and uncalibrated score of each target."""
    return [(mask, score) for mask, _, score, _ in _drawn(raw, image)]


def _drawn(
    raw: RawAnswer, image: SegmenterInput
) -> Iterator[tuple[np.ndarray, Box, float, np.ndarray]]:
    """Mask, box, raw score and similarity grid of each target."""
    if raw.mask_logits is None or raw.quality is None or raw.similarity is None:
        return
    for row in range(len(raw.mask_logits)):
        side = image.pixels.shape[-1]
        logits = restore_mask(raw.mask_logits[row], side, image.content, image.original)
        tight = mask_to_box(logits > 0)
        box = _box(raw, row, image, tight)
        agreement = 0.0 if tight is None else float(box_iou([box], [tight])[0, 0])
        score = raw_score(logits, agreement, float(raw.quality[row]), raw.presence[row])
        cells = round(raw.similarity.shape[1] ** 0.5)
        yield logits > 0, box, score, raw.similarity[row].reshape(cells, cells)


def _box(raw: RawAnswer, row: int, image: SegmenterInput, tight: Box | None) -> Box:
    """The box decoder's box in pixels; without one, the smallest box around the mask."""
    if raw.boxes is None:
        return tight or (0.0, 0.0, 0.0, 0.0)
    height, width = image.original
    x1, y1, x2, y2 = cxcywh_to_xyxy(raw.boxes[row], height, width)
    limits = ((x1, width), (y1, height), (x2, width), (y2, height))
    left, top, right, bottom = (float(min(max(value, 0), limit)) for value, limit in limits)
    return left, top, right, bottom


def raw_score(logits: np.ndarray, agreement: float, quality: float, presence: float) -> float:
    """How sure the answer is, 0..1, before calibration: the mean of four signs.

    The mask's stability (IoU of the masks at logits +1 and -1, as SAM has it), how well it fills
    its box, the mask decoder's estimate of IoU, and the probability that the target is here.
    """
    larger = float((logits > -1).sum())
    stability = float((logits > 1).sum()) / larger if larger else 0.0
    return float(np.mean([stability, agreement, np.clip(quality, 0, 1), presence]))
