"""Every figure that an evaluation reports, on plain arrays.

Conventions. A question is compared as a whole: the union of its masks with the union of its
targets, and the box around them with the box around the targets. Where there is neither a target
nor a prediction, Dice and IoU are 1; where there is only one of the two they are 0. The paper's
"gIoU" is `mean_iou`, its "cIoU" `cumulative_iou`, its "Acc@0.5" `accuracy_at` (strictly greater).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "PRINTED",
    "Interval",
    "Overlap",
    "RefusalRates",
    "accuracy_at",
    "bootstrap_interval",
    "cumulative_iou",
    "expected_calibration_error",
    "mean_iou",
    "refusal_rates",
]

PRINTED = {
    "dice": "Dice",
    "mean_iou": "gIoU",
    "cumulative_iou": "cIoU",
    "box_iou": "box IoU",
    "accuracy_at_0.5": "Acc@0.5",
    "named": "named",
    "answered": "answered",
}
"""Each figure of a report and what printed tables call it (the paper's labels)."""


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of a predicted and a true mask, and what follows from them."""

    intersection: int
    predicted: int
    true: int

    @classmethod
    def of(cls, predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> Overlap:
        """The overlap of two (H, W) bool masks of the same size; ValueError otherwise."""
        if predicted.shape != true.shape:
            raise ValueError(f"masks of {predicted.shape} and {true.shape} cannot be compared")
        parts = (predicted & true, predicted, true)
        return cls(*(int(np.count_nonzero(part)) for part in parts))

    @property
    def union(self) -> int:
        """Pixels in either mask."""
        return self.predicted + self.true - self.intersection

    @property
    def dice(self) -> float:
        """2 I / (P + T); 1 when both masks are empty."""
        total = self.predicted + self.true
        return 2 * self.intersection / total if total else 1.0

    @property
    def iou(self) -> float:
        """I / U; 1 when both masks are empty."""
        return self.intersection / self.union if self.union else 1.0


def mean_iou(overlaps: list[Overlap]) -> float:
    """Mean of the questions' IoU: the paper's gIoU."""
    return float(np.mean([overlap.iou for overlap in overlaps]))


def cumulative_iou(overlaps: list[Overlap]) -> float:
    """All intersections over all unions: the paper's cIoU; 0 when every union is empty."""
    union = sum(overlap.union for overlap in overlaps)
    return sum(overlap.intersection for overlap in overlaps) / union if union else 0.0


def accuracy_at(ious: ArrayLike, threshold: float = 0.5) -> float:
    """Share of IoUs that are greater than the threshold."""
    return float(np.mean(np.asarray(ious) > threshold))


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval and the number of questions behind it."""

    value: float
    low: float
    high: float
    n: int


def bootstrap_interval(
    numerators: ArrayLike,
    clusters: ArrayLike,
    denominators: ArrayLike | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Sum of numerators over sum of denominators, resampled by cluster.

    numerators, denominators: (N,) floats; without denominators the figure is the mean. clusters:
    (N,) ids; all questions about one image are drawn together, since they are not independent.
    Percentiles 2.5 and 97.5 of `samples` resamples. Raises ValueError when there is nothing.
    """
    top = np.asarray(numerators, dtype=float)
    below = np.ones_like(top) if denominators is None else np.asarray(denominators, dtype=float)
    if top.size == 0:
        raise ValueError("there is nothing to average")
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    tops, belows = np.bincount(cluster, top), np.bincount(cluster, below)
    count = len(tops)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), samples)
    resampled = _ratio(draws @ tops, draws @ belows)
    low, high = np.percentile(resampled, [2.5, 97.5])
    value = _ratio(top.sum(), below.sum())
    return Interval(float(value), float(low), float(high), int(top.size))


def _ratio(top: ArrayLike, below: ArrayLike) -> NDArray[np.float64]:
    top, below = np.asarray(top, dtype=float), np.asarray(below, dtype=float)
    return np.divide(top, below, out=np.zeros_like(top), where=below > 0)


@dataclass(frozen=True)
class RefusalRates:
    """How well a system knows when not to answer; a rate without questions is None.

    N_acc: share of questions without target that were refused. T_acc: share of questions with
    target that were answered. MCC: Matthews correlation between "refused" and "has no target".
    """

    n_acc: float | None
    t_acc: float | None
    mcc: float | None


def refusal_rates(refused: ArrayLike, absent: ArrayLike) -> RefusalRates:
    """Rates from (N,) bools: was the question refused, and had it no target."""
    refused, absent = np.asarray(refused, dtype=bool), np.asarray(absent, dtype=bool)
    tp, fn = np.sum(refused & absent), np.sum(~refused & absent)
    fp, tn = np.sum(refused & ~absent), np.sum(~refused & ~absent)
    n_acc = float(tp / (tp + fn)) if tp + fn else None
    t_acc = float(tn / (tn + fp)) if tn + fp else None
    product = float(tp + fp) * float(tp + fn) * float(tn + fp) * float(tn + fn)
    known = n_acc is not None and t_acc is not None
    mcc = float(tp * tn - fp * fn) / product**0.5 if product else 0.0
    return RefusalRates(n_acc, t_acc, mcc if known else None)


def expected_calibration_error(scores: ArrayLike, correct: ArrayLike, bins: int = 10) -> float:
    """Mean distance between score and share correct, over equally wide bins of the score.

    scores: (N,) in [0, 1]; correct: (N,) bools; each bin weighs as much as it has scores
    (Naeini et al. 2015). 0 when there are none.
    """
    scores, correct = np.asarray(scores, dtype=float), np.asarray(correct, dtype=float)
    which = np.minimum((scores * bins).astype(int), bins - 1)
    gaps = np.bincount(which, scores - correct, minlength=bins)
    return float(np.abs(gaps).sum() / scores.size) if scores.size else 0.0
