"""The states that a model with fixed category states was trained to emit, one for each category.

They tell which category a target's emitted states mean, by the cosine that training used, and
what the heads read in their place. `categories.safetensors` in a model's folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError
from .phrases import Phrasebook

__all__ = ["Categories", "speaking_categories"]

FILE = "categories.safetensors"
TEMPERATURE = 0.05
"""Of `settle`: a cosine nearer by so much counts e times as much."""

States = NDArray[np.float32]


class Categories:
    """The k categories that a model knows.

    Attributes:
        names: one each.
        states: (k, n, d), what the language model was trained to emit.
        read: (k, n, d), what the heads know each one by, on the mean what the language model
            really emits; None where the heads read every emitted state as it is.
        leads: of each category that was added to a finished model, how far its score must be ahead
            of all others' to be sure. The language model has not learned to tell whether it is
            there; those learned with it are never sure in this sense.
    """

    def __init__(
        self,
        names: Sequence[str],
        states: States,
        read: States | None = None,
        leads: Mapping[str, float] | None = None,
    ) -> None:
        self.names = tuple(names)
        self.states = states
        self.read = read
        self.leads = dict(leads or {})
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
                stored = file.keys()
                arrays = {name: file.get_tensor(name).astype(np.float32) for name in stored}
                metadata = file.metadata()
                leads = json.loads(metadata.get("leads", "{}"))
                return cls(json.loads(metadata["names"]), **arrays, leads=leads)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{folder / FILE} is damaged; get the model again") from error

    def save(self, folder: Path) -> None:
        """Writes states in fp16, names as metadata."""
        from safetensors.numpy import save_file

        metadata = {"names": json.dumps(self.names), "leads": json.dumps(self.leads)}
        arrays = {"states": self.states} | ({} if self.read is None else {"read": self.read})
        halves = {name: array.astype(np.float16) for name, array in arrays.items()}
        save_file(halves, folder / FILE, metadata)

    def nearest(self, states: States) -> list[str]:
        """Name of the category nearest to each of (T, n, d) candidate states."""
        return [self.names[index] for index in self.scores(states).argmax(axis=1).tolist()]

    def sure(self, states: States) -> NDArray[np.bool_]:
        """(T,): whether (T, n, d) candidate states surely mean a category that was added."""
        found = np.zeros(len(states), bool)
        if self.leads and len(states):
            scores = self.scores(states)
            for name, lead in self.leads.items():
                own = self.names.index(name)
                found |= scores[:, own] - np.delete(scores, own, axis=1).max(axis=1) >= lead
        return found

    def settle(self, states: States) -> States:
        """What the heads read of emitted (T, n, d): the categories meant, without the noise.

        A softmax over the categories' scores weighs their `read` states (the retrieval step of a
        Hopfield network, Ramsauer et al. 2021).
        """
        if self.read is None:
            return states
        scores = self.scores(states) / TEMPERATURE
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        settled: States = np.einsum("tk,knd->tnd", chances, self.read)
        return settled

    def scores(self, states: States) -> NDArray[np.float32]:
        """(T, k) cosines without what all categories have in common."""
        return _normalised(states - self.common) @ self._own.T


def speaking_categories(folder: Path, phrases: Phrasebook | None) -> Categories | None:
    """A model's categories, of which each has its words where the model has a phrasebook."""
    categories = Categories.load(folder)
    if phrases is not None:
        named = [None] if categories is None else categories.names
        if set(named) - phrases.answers.keys():
            raise ModelError(f"{folder} has categories for which its phrases.json has no words")
    return categories


def _normalised(states: States) -> NDArray[np.float32]:
    """(k, n, d) -> (k, n d) of length one."""
    flat = states.reshape(len(states), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
