"""What every stage works with: model, data, questions, and the categories' fixed states."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from ..categories import Categories
from ..familiarity import Familiarity
from ..model import MediSeeModel
from ..model.inference import settled
from ..processing import MediSeeProcessor, clip_input
from ..structures import QARecord
from .targets import POOLED, Targets

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

    Attributes:
        machine: device and processes; the model is there, the splits are in the CPU's memory.
        emits_states: the language model learns the categories' fixed states. Without it (the
            paper's form) the heads learn from whatever is emitted, and nothing is named by states.
        known, familiar: of a fine-tuning, how many categories, the first ones, the model knew
            before, and what its training images were like.
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
    machine: Accelerator = field(default_factory=partial(Accelerator, cpu=True))
    emits_states: bool = True

    @property
    def device(self) -> torch.device:
        return self.machine.device

    @property
    def states(self) -> Tensor:
        """(labels, n, d) what the MLLM is to emit for each label of the splits."""
        return torch.from_numpy(self.categories.states).to(self.device)

    @property
    def read(self) -> Tensor:
        """(labels, n, d) what the heads know each label by."""
        categories = self.categories
        read = categories.states if categories.read is None else categories.read
        return torch.from_numpy(read).to(self.device)

    def settle(self, states: Tensor) -> Tensor:
        """Emitted states (T, n, d) as the heads will read them."""
        if not self.emits_states:
            return states
        return settled(self.categories, states.float())

    @property
    def trains_encoder(self) -> bool:
        """Whether this stage trains some of the segmenter's image encoder: its cache is stale."""
        return any(p.requires_grad for p in self.model.segmenter.vision_encoder.parameters())

    def embedding(self, data: Targets, rows: Sequence[int], views: Sequence[int]) -> Tensor:
        """(B, C, E, E) fp32 of images of a split: cached, or encoded with gradients."""
        pairs = list(zip(rows, views, strict=True))
        if not self.trains_encoder:
            return torch.stack([data.features(*pair) for pair in pairs]).to(self.device)
        pixels = np.stack([data.pixels(*pair).pixels for pair in pairs])
        return self.model.segmenter.encode(torch.from_numpy(pixels).to(self.device))

    def pooled(self, data: Targets, rows: Sequence[int], views: Sequence[int]) -> Tensor:
        """(B, C, 16, 16) fp32, likewise."""
        if self.trains_encoder:
            return F.adaptive_avg_pool2d(self.embedding(data, rows, views), POOLED)
        return data.pooled[list(rows), list(views)].float().to(self.device)

    def shown(
        self, data: Targets, rows: Sequence[int], views: Sequence[int], whole: bool
    ) -> dict[str, Tensor]:
        """Images of a split as `MediSeeModel.forward` takes them.

        Args:
            whole: at the mask decoder's resolution, else pooled.
        """
        embedding = self.embedding if whole else self.pooled
        arguments = {
            "content": data.content[list(rows)].to(self.device),
            "segmenter_embedding": embedding(data, rows, views),
        }
        if (size := self.processor.config.clip_size) is not None:
            pairs = zip(rows, views, strict=True)
            own = [clip_input(data.display(*pair), size) for pair in pairs]
            arguments["pixel_values"] = torch.from_numpy(np.stack(own)).to(self.device)
        return arguments


class Task(Protocol):
    """One stage's work: losses of a step, measurements on the validation split."""

    def losses(self, step: int, progress: float) -> Losses:
        """Named losses of a step; `progress` is 0..1 of the stage."""

    def validate(self) -> dict[str, float]:
        """Named figures."""
