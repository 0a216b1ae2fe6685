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

from medisee.extras import needs_extra

__all__ = [
    "PRINTED",
    "Difference",
    "Interval",
    "Overlap",
    "RefusalRates",
    "RiskCoverage",
    "accuracy_at",
    "bootstrap_interval",
    "bootstrap_intervals",
    "cumulative_iou",
    "expected_calibration_error",
    "holm",
    "mean_iou",
    "paired_difference",
    "refusal_rates",
    "risk_coverage",
    "surface_dice",
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
    top = np.asarray(numerators, dtype=float)[:, None]
    below = None if denominators is None else np.asarray(denominators, dtype=float)[:, None]
    return bootstrap_intervals(top, clusters, below, samples, seed)[0]


def bootstrap_intervals(
    numerators: NDArray[np.float64],
    clusters: ArrayLike,
    denominators: NDArray[np.float64] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> list[Interval]:
    """`bootstrap_interval` of M figures (N, M) of the same questions, on the same resamples."""
    if len(numerators) == 0:
        raise ValueError("there is nothing to average")
    below = np.ones_like(numerators) if denominators is None else denominators
    tops, belows = _by_cluster(numerators, clusters), _by_cluster(below, clusters)
    count = len(tops)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), samples)
    weights = draws.astype(float)
    resampled = _ratio(weights @ tops, weights @ belows)
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    value = _ratio(numerators.sum(axis=0), below.sum(axis=0))
    return [
        Interval(float(v), float(a), float(b), len(numerators))
        for v, a, b in zip(value, low, high, strict=True)
    ]


@dataclass(frozen=True)
class Difference:
    """A figure of one system minus that of another on the same questions.

    low, high: 95 % bootstrap interval; p: two-sided, of the hypothesis that the systems could be
    swapped image by image; n: questions.
    """

    value: float
    low: float
    high: float
    p: float
    n: int


def paired_difference(
    first: tuple[ArrayLike, ArrayLike],
    second: tuple[ArrayLike, ArrayLike],
    clusters: ArrayLike,
    samples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Two systems on the same questions, each as numerators (N,) and denominators (N,).

    The interval resamples clusters for both systems at once; p is a permutation test that swaps
    the systems within clusters at random (p is at least 1 / (samples + 1)).
    """
    a, b = (_by_cluster(np.stack(each, axis=1).astype(float), clusters) for each in (first, second))
    rng = np.random.default_rng(seed)
    count = len(a)
    draws = rng.multinomial(count, np.full(count, 1 / count), samples).astype(float)
    resampled = _ratios(draws @ a) - _ratios(draws @ b)
    low, high = np.percentile(resampled, [2.5, 97.5])
    swaps = rng.integers(0, 2, (samples, count)).astype(float) @ (b - a)
    swapped = _ratios(a.sum(axis=0) + swaps) - _ratios(b.sum(axis=0) - swaps)
    value = float(_ratios(a.sum(axis=0)) - _ratios(b.sum(axis=0)))
    as_far = np.count_nonzero(np.abs(swapped) >= abs(value) - 1e-12)
    p = (1 + as_far) / (samples + 1)
    return Difference(value, float(low), float(high), float(p), len(np.asarray(clusters)))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """(N,) p-values corrected for N tests (Holm 1979)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def _by_cluster(values: NDArray[np.float64], clusters: ArrayLike) -> NDArray[np.float64]:
    """(N, M) values of N questions -> (C, M) sums over the clusters."""
    _, which = np.unique(np.asarray(clusters), return_inverse=True)
    return np.stack([np.bincount(which, column) for column in values.T], axis=1)


def _ratios(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return _ratio(sums[..., 0], sums[..., 1])


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


@dataclass(frozen=True)
class RiskCoverage:
    """Share wrong among the most certain answers, for each share of answers kept.

    coverage: (K,) rising to 1; risk: (K,) share wrong among them; area: mean risk over all
    coverages (AURC; lower is better). Answers of equal score are kept or dropped together.
    """

    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]
    area: float


def risk_coverage(scores: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """From scores (N,) and whether each answer was right (N,); ValueError when there is none."""
    scores, correct = np.asarray(scores, dtype=float), np.asarray(correct, dtype=float)
    if scores.size == 0:
        raise ValueError("there is nothing to keep or drop")
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    wrong = np.cumsum(1 - correct[order])[ends]
    risk, coverage = wrong / (ends + 1), (ends + 1) / scores.size
    return RiskCoverage(coverage, risk, float((risk * np.diff(coverage, prepend=0)).sum()))


def surface_dice(
    predicted: NDArray[np.bool_],
    true: NDArray[np.bool_],
    tolerance: float,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> float:
    """Normalised surface distance of two (H, W) masks: share of outline pixels near the other's.

    An outline pixel is one of the mask with a 4-neighbour outside it; near is within `tolerance`,
    in mm by `spacing` (row, column) (Nikolov et al. 2018). 1 when both are empty, 0 when one is.
    """
    with needs_extra("the surface distance", "stats"):
        from scipy.ndimage import binary_erosion, distance_transform_edt
    if not predicted.any() or not true.any():
        return float(predicted.any() == true.any())
    first, second = (mask & ~binary_erosion(mask) for mask in (predicted, true))
    to_first, to_second = (
        distance_transform_edt(~outline, sampling=spacing) for outline in (first, second)
    )
    near = np.count_nonzero(to_second[first] <= tolerance)
    near += np.count_nonzero(to_first[second] <= tolerance)
    return float(near / (np.count_nonzero(first) + np.count_nonzero(second)))
