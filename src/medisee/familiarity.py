"""Whether an image is like those that a model was trained on.

The mean of the segmenter's embedding over the image is compared with the nearest of a few dozen
centres of the training images; the limit is the 99th percentile of the validation images.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError

__all__ = ["Familiarity", "fit_familiarity"]

FILE = "familiarity.json"


@dataclass(frozen=True)
class Familiarity:
    """Centres (k, C) of the training images, the spread (C,) of each channel, the limit."""

    centres: NDArray[np.float32]
    spread: NDArray[np.float32]
    limit: float

    @classmethod
    def of(cls, folder: Path) -> Familiarity:
        """As stored with a model; a model that stores none finds every image familiar."""
        if not (folder / FILE).is_file():
            return cls(np.zeros((1, 1), np.float32), np.ones(1, np.float32), float("inf"))
        try:
            entry = json.loads((folder / FILE).read_text(encoding="utf-8"))
            centres = np.array(entry["centres"], np.float32)
            return cls(centres, np.array(entry["spread"], np.float32), float(entry["limit"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{folder / FILE} is damaged; get the model again") from error

    def save(self, folder: Path) -> None:
        entry = {
            "centres": np.round(self.centres, 4).tolist(),
            "spread": np.round(self.spread, 5).tolist(),
            "limit": self.limit,
        }
        (folder / FILE).write_text(json.dumps(entry), encoding="utf-8")

    def distance(self, embedding: Any) -> float:
        """Distance of an image embedding (1, C, E, E) from the nearest centre."""
        if self.limit == float("inf"):
            return 0.0
        return float(self._distances(summary(embedding)[None])[0])

    def is_unlike(self, embedding: Any) -> bool:
        return self.distance(embedding) > self.limit

    def _distances(self, summaries: NDArray[np.float32]) -> NDArray[np.float32]:
        difference = (summaries[:, None] - self.centres[None]) / self.spread
        return np.sqrt((difference**2).mean(axis=2)).min(axis=1)


def summary(embedding: Any) -> NDArray[np.float32]:
    """(1, C, E, E) or (C, E, E), array or tensor -> (C,) mean over positions."""
    array = np.asarray(embedding, np.float32)
    return array.reshape(-1, *array.shape[-2:]).mean(axis=(1, 2))


def fit_familiarity(
    train: NDArray[np.float32], val: NDArray[np.float32], centres: int = 64, seed: int = 0
) -> Familiarity:
    """Centres by k-means on summaries (N, C) of the training images, limit from the others."""
    random = np.random.default_rng(seed)
    spread = train.std(axis=0) + 1e-6
    found = train[random.permutation(len(train))[:centres]]
    for _ in range(30):
        nearest = (((train[:, None] - found[None]) / spread) ** 2).sum(axis=2).argmin(axis=1)
        found = np.stack(
            [train[nearest == k].mean(axis=0) if (nearest == k).any() else found[k]
             for k in range(len(found))]
        )  # fmt: skip
    fitted = Familiarity(found, spread, float("inf"))
    limit = float(np.percentile(fitted._distances(val), 99))
    return Familiarity(found, spread, limit)
