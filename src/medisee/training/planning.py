"""What a recipe will train and how long that takes, told before any time is spent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..data.sa_med2d import ImageRecord, Index
from ..errors import DataError
from ..hub import find_model
from . import prepare
from .align import ALIGNED
from .context import Context
from .language import Language
from .loop import Work, train_step, trainable
from .recipe import Recipe, Stage
from .tasks import TASKS
from .weights import load_trainable

TRAINED = 12
"""Bytes of a trained number's gradient and AdamW's two moments, in fp32."""


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
    model = load_trainable(find_model(recipe.init), recipe, torch.device("cpu"))
    sizes = [(value.numel(), value.element_size()) for value in model.parameters()]
    total, weights = sum(n for n, _ in sizes), sum(n * size for n, size in sizes)
    for stage in recipe.stages:
        rates = dict.fromkeys(ALIGNED, 1.0) if stage.task == "align" else stage.rates
        groups = trainable(model, stage.model_copy(update={"rates": rates}))
        trained = sum(value.numel() for group in groups for value in group["params"])
        memory = weights + TRAINED * trained
        yield StagePlan(stage.name, stage.task, trained, total - trained, stage.steps, memory)


@dataclass(frozen=True)
class Cost:
    """Measured of one step: seconds, and the GPU's memory in bytes (None on a CPU)."""

    seconds: float
    memory: int | None


def measure_stages(recipe: Recipe) -> dict[str, Cost]:
    """What a step of each stage takes here: two are run on a few images, and nothing is kept."""
    with TemporaryDirectory() as folder:
        update = {"out": folder, "cache": folder, "trackers": [], "records": 2_000}
        small = recipe.model_copy(update=update)
        images = max(stage.batch for stage in recipe.stages)
        context = prepare(small, FewImages(Path(recipe.data), images))
        return {stage.name: _measure(context, small, stage) for stage in small.stages}


def _measure(context: Context, recipe: Recipe, stage: Stage) -> Cost:
    on_gpu, seconds = context.device.type == "cuda", 0.0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for step in range(2):  # the first one warms up
        began = time.perf_counter()
        if stage.task == "align":
            with torch.inference_mode():
                Language(context, stage).emitted(step)
        else:
            _train(context, recipe, stage, step)
        seconds = time.perf_counter() - began
    return Cost(seconds, torch.cuda.max_memory_allocated() if on_gpu else None)


def _train(context: Context, recipe: Recipe, stage: Stage, step: int) -> None:
    if stage.task not in TASKS:
        raise DataError(f"stage {stage.name}: {stage.task} is not a task of recipes")
    optimizer = torch.optim.AdamW(trainable(context.model, stage), lr=0.0, fused=True)
    work = Work(context.model, TASKS[stage.task](context, stage), recipe.precision)
    train_step(context.machine, work, optimizer, recipe, stage, step)


class FewImages(Index):
    """The first images of each split."""

    def __init__(self, root: Path, count: int) -> None:
        super().__init__(root)
        self.count = count

    def entries(self) -> Iterator[ImageRecord | DataError]:
        seen: Counter[str] = Counter()
        for entry in super().entries():
            split = entry.split if isinstance(entry, ImageRecord) else ""
            seen[split] += 1
            if seen[split] <= self.count:
                yield entry
