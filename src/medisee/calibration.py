"""From a raw score to the probability that a mask is right, and to the decision to refuse.

Fitted on the validation split, stored as calibration.json beside the weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medisee.errors import DataError, ModelError

__all__ = ["Calibration", "fit_logistic", "refusal_threshold"]

FORMAT = "medisee.calibration/1"
_MINIMUM = 20


@dataclass(frozen=True)
class Calibration:
    """How raw scores become probabilities, and above which raw score a question is refused.

    kind "isotonic": linear between the knots (`x` raw, `y` probability), constant beyond them.
    kind "logistic": 1 / (1 + exp(-(a raw + b))), with a and b in `y`.
    refuse_above: a question whose "not here" score is greater is refused; None: never by score.
    """

    kind: Literal["isotonic", "logistic"]
    x: tuple[float, ...]
    y: tuple[float, ...]
    refuse_above: float | None = None

    def __call__(self, raw: ArrayLike) -> NDArray[np.float64]:
        """Probability in [0, 1] that IoU > 0.5, of the shape of `raw`."""
        raw = np.asarray(raw, dtype=float)
        if self.kind == "isotonic":
            return np.asarray(np.interp(raw, self.x, self.y))
        slope, offset = self.y
        return np.asarray(_sigmoid(slope * raw + offset))

    def refuses(self, raw: ArrayLike) -> NDArray[np.bool_]:
        """Whether "not here" scores, of any shape, lead to a refusal."""
        raw = np.asarray(raw, dtype=float)
        return raw > (np.inf if self.refuse_above is None else self.refuse_above)

    def save(self, path: str | Path) -> None:
        """Writes plain JSON."""
        text = json.dumps({"format": FORMAT, **self._fields()}, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Reads what `save` wrote; ModelError when the file is missing or is something else."""
        path = Path(path)
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            if entry.pop("format") != FORMAT:
                raise ValueError("another format")
            loaded = cls(
                kind=entry["kind"],
                x=tuple(map(float, entry["x"])),
                y=tuple(map(float, entry["y"])),
                refuse_above=None
                if entry["refuse_above"] is None
                else float(entry["refuse_above"]),
            )
        except OSError as error:
            raise ModelError(f"{path.name}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path.name}: is not a calibration; fit it again") from error
        loaded._check(path.name)
        return loaded

    def _fields(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "x": list(self.x),
            "y": list(self.y),
            "refuse_above": self.refuse_above,
        }

    def _check(self, name: str) -> None:
        rising = all(a < b for a, b in zip(self.x, self.x[1:], strict=False))
        isotonic = self.kind == "isotonic" and len(self.x) == len(self.y) > 0 and rising
        if not isotonic and not (self.kind == "logistic" and len(self.y) == 2):
            raise ModelError(f"{name}: is not a calibration; fit it again")


def fit_logistic(raw: ArrayLike, correct: ArrayLike, iterations: int = 50) -> Calibration:
    """Platt's two-parameter map with his smoothed targets (Platt 1999), by Newton's method.

    raw: (N,) scores; correct: (N,) bools, IoU > 0.5. DataError below 20 of them.
    """
    raw, correct = _checked(raw, correct)
    positives, negatives = correct.sum(), (1 - correct).sum()
    goal = np.where(correct > 0, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    spread = raw.std() or 1.0
    design = np.stack([(raw - raw.mean()) / spread, np.ones_like(raw)], axis=1)
    weights = np.zeros(2)
    for _ in range(iterations):
        chance = _sigmoid(design @ weights)
        gradient = design.T @ (chance - goal)
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + 1e-6 * np.eye(2)
        weights = weights - np.clip(np.linalg.solve(curvature, gradient), -2, 2)
    slope = float(weights[0] / spread)
    return Calibration("logistic", (), (slope, float(weights[1] - slope * raw.mean())))


def refusal_threshold(present: ArrayLike, keep_present: float = 0.9) -> float:
    """The "not here" score above which to refuse: the lowest that answers enough.

    present: scores of questions whose target is there, of which at least the share `keep_present`
    is answered. DataError when there are none.
    """
    present = np.asarray(present, dtype=float)
    if present.size == 0:
        raise DataError("a refusal threshold needs questions whose target is there")
    return float(np.quantile(present, keep_present, method="inverted_cdf"))


def _checked(raw: ArrayLike, correct: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    raw, correct = np.asarray(raw, dtype=float), np.asarray(correct, dtype=float)
    if raw.ndim != 1 or raw.shape != correct.shape or raw.size < _MINIMUM:
        raise DataError(f"a calibration needs at least {_MINIMUM} scored answers")
    if not np.isfinite(raw).all():
        raise DataError("a calibration needs finite scores")
    return raw, correct


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))  # does not overflow
