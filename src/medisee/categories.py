"""The states that a model with fixed category states was trained to emit, one for each category.

They tell which category a target's emitted states mean, by the cosine that training used.
`categories.safetensors` in a model's folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError
from .phrases import Phrasebook

__all__ = ["Categories", "speaking_categories"]

FILE = "categories.safetensors"


class Categories:
    """Names and states (k, n, d) of the k categories that a model knows."""

    def __init__(self, names: Sequence[str], states: NDArray[np.float32]) -> None:
        self.names = tuple(names)
        self.states = states
        self.common = states.mean(axis=0, keepdims=True)
        self._own = _normalised(states - self.common)

    @classmethod
    def load(cls, folder: Path) -> Categories | None:
        """As stored with a model; None where the model stores none."""
        from safetensors import SafetensorError, safe_open

        if not (folder / FILE).is_file():
            return None
        try:
            with safe_open(folder / FILE, framework="np") as file:
                states = file.get_tensor("states").astype(np.float32)
                return cls(json.loads(file.metadata()["names"]), states)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{folder / FILE} is damaged; get the model again") from error

    def save(self, folder: Path) -> None:
        """Writes states in fp16, names as metadata."""
        from safetensors.numpy import save_file

        metadata = {"names": json.dumps(self.names)}
        save_file({"states": self.states.astype(np.float16)}, folder / FILE, metadata)

    def nearest(self, states: NDArray[np.float32]) -> list[str]:
        """Name of the category nearest to each of (T, n, d) candidate states."""
        scores = _normalised(states - self.common) @ self._own.T
        return [self.names[index] for index in scores.argmax(axis=1).tolist()]


def speaking_categories(folder: Path, phrases: Phrasebook | None) -> Categories | None:
    """A model's categories, of which each has its words where the model has a phrasebook."""
    categories = Categories.load(folder)
    if phrases is not None:
        named = [None] if categories is None else categories.names
        if set(named) - phrases.answers.keys():
            raise ModelError(f"{folder} has categories for which its phrases.json has no words")
    return categories


def _normalised(states: NDArray[np.float32]) -> NDArray[np.float32]:
    """(k, n, d) -> (k, n d) of length one."""
    flat = states.reshape(len(states), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
