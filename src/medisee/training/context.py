"""What every stage works with: model, data, questions, and the categories' fixed states."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..categories import Categories
from ..familiarity import Familiarity
from ..model import MediSeeModel
from ..processing import MediSeeProcessor
from ..structures import QARecord
from .targets import Targets

Losses = dict[str, Tensor]


def fixed_categories(
    labels: Sequence[str], candidates: int, width: int, seed: int, known: Categories | None = None
) -> Categories:
    """The categories that a run teaches, each with a fixed state (n, d).

    A state is a common part and a part of the category's own, RMS 1 each. The latter follows from
    the name, whatever else is trained; what a model `known` knows already keeps its states.
    """
    common = _normal(f"{seed}", candidates, width) if known is None else known.common[0]
    fresh = np.stack([common + _normal(f"{seed}/{label}", candidates, width) for label in labels])
    if known is None:
        return Categories(labels, fresh)
    states = _kept(known, known.states, labels, fresh)
    read = None if known.read is None else _kept(known, known.read, labels, states)
    return Categories(labels, states, read)


def _kept(
    known: Categories, arrays: np.ndarray, labels: Sequence[str], fresh: np.ndarray
) -> np.ndarray:
    """Of each label what is known of it, or what is fresh."""
    before = dict(zip(known.names, arrays, strict=True))
    pairs = zip(labels, fresh, strict=True)
    return np.stack([before.get(label, value) for label, value in pairs])


def _normal(name: str, *shape: int) -> np.ndarray:
    """Standard normal numbers that follow from a name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).numpy()


@dataclass
class Context:
    """What every task works with.

    Of a fine-tuning, `known` is how many categories, the first ones, the model knew before, and
    `familiar` tells what its training images were like.
    """

    model: MediSeeModel
    processor: MediSeeProcessor
    train: Targets
    val: Targets
    categories: Categories
    train_records: list[QARecord]
    val_records: list[QARecord]
    seed: int
    known: int = 0
    familiar: Familiarity | None = None

    @property
    def states(self) -> Tensor:
        """(labels, n, d) what the MLLM is to emit for each label of the splits."""
        return torch.from_numpy(self.categories.states)

    @property
    def read(self) -> Tensor:
        """(labels, n, d) what the heads know each label by."""
        categories = self.categories
        return torch.from_numpy(categories.states if categories.read is None else categories.read)

    def settle(self, states: Tensor) -> Tensor:
        """Emitted states (T, n, d) as the heads will read them."""
        return torch.from_numpy(self.categories.settle(states.float().numpy()))


class Task(Protocol):
    """One stage's work: losses of a step, measurements on the validation split."""

    def losses(self, step: int, progress: float) -> Losses:
        """Named losses of a step; `progress` is 0..1 of the stage."""

    def validate(self) -> dict[str, float]:
        """Named figures."""
