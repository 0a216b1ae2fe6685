"""Category states: what the candidate states of each known category look like.

A small model's states are trained towards one fixed state per category; the nearest one tells what
it means, and so what it may say. Kept in a model's folder as `categories.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ModelError

FILE = "categories.safetensors"


class Categories:
    """Names and states (k, n, d) of the k categories that a model knows."""

    def __init__(self, names: Sequence[str], states: Tensor) -> None:
        self.names = tuple(names)
        self.states = states

    @classmethod
    def load(cls, folder: Path) -> Categories | None:
        """As stored with a model; None where the model stores none."""
        if not (folder / FILE).is_file():
            return None
        try:
            with safe_open(folder / FILE, framework="pt") as file:
                return cls(json.loads(file.metadata()["names"]), file.get_tensor("states").float())
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{folder / FILE} is damaged; get the model again") from error

    def save(self, folder: Path) -> None:
        """Writes states in fp16, names as metadata."""
        metadata = {"names": json.dumps(self.names)}
        save_file({"states": self.states.half().contiguous()}, folder / FILE, metadata)

    def nearest(self, states: Tensor) -> list[str]:
        """Name of the category nearest to each of (T, n, d) candidate states."""
        scores = category_scores(states.cpu(), self.states)
        return [self.names[index] for index in scores.argmax(dim=1).tolist()]


def category_scores(states: Tensor, categories: Tensor) -> Tensor:
    """(T, k) cosine between states (T, n, d) and each category's (k, n, d), common part removed."""
    common = categories.mean(dim=0, keepdim=True)
    emitted = F.normalize((states.float() - common).flatten(1), dim=1)
    return emitted @ F.normalize((categories - common).flatten(1), dim=1).T


def nearest_category(states: Tensor, categories: Tensor) -> Tensor:
    """(T,) the category whose states are nearest to the emitted ones."""
    return torch.argmax(category_scores(states, categories), dim=1)
