"""What a recipe will train, told before any time is spent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..data.sa_med2d import Index
from ..hub import find_model
from ..model.inference import load_weights
from .adapters import add_lora
from .align import ALIGNED
from .loop import trainable
from .recipe import Recipe

WEIGHT, TRAINED = 4, 12
"""Bytes of a number in fp32; of its gradient and AdamW's two moments, where it is trained."""


@dataclass(frozen=True)
class StagePlan:
    """One stage: numbers (parameters) trained and frozen, steps, and bytes of all of them.

    Attributes:
        memory: weights, gradients and the optimiser's moments; what passes through the network
            comes on top and depends on images and questions.
    """

    name: str
    task: str
    trained: int
    frozen: int
    steps: int
    memory: int


def plan_stages(recipe: Recipe) -> Iterator[StagePlan]:
    """The stages of a recipe, in order; reads the model, and trains nothing.

    Raises:
        DataError, ModelError: what `train` would stop at, too: no such data or model, rates that
            name nothing.
    """
    Index.open(recipe.data)
    model = load_weights(find_model(recipe.init))
    if recipe.lora is not None:
        add_lora(model, recipe.lora)
    total = sum(parameter.numel() for parameter in model.parameters())
    for stage in recipe.stages:
        rates = dict.fromkeys(ALIGNED, 1.0) if stage.task == "align" else stage.rates
        groups = trainable(model, stage.model_copy(update={"rates": rates}))
        trained = sum(value.numel() for group in groups for value in group["params"])
        memory = WEIGHT * total + TRAINED * trained
        yield StagePlan(stage.name, stage.task, trained, total - trained, stage.steps, memory)
