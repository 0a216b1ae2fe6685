"""How many questions a second training takes in, in our arrangement and in the authors'.

    python -m medisee.training.nano wheels --to runs/untrained
    python benchmarks/training.py runs/untrained DATA [--task joint] [--steps 3]

Ours: the frozen encoder ran once per image and its features lie on disk; the questions of an image
follow one image prefix. Theirs: the encoder runs for each question (frozen, in its fast form), and
each question is a sequence of its own with its own image prefix. Same weights, same questions, same
losses and optimiser in the same run, the two taking turns; with a GPU, on it.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from medisee import training
from medisee.data.sa_med2d import Index
from medisee.hub import find_model
from medisee.model.placement import compute_dtype
from medisee.model.tinyvit import fold_batch_norms
from medisee.structures import QARecord
from medisee.training.context import Context
from medisee.training.language import Language
from medisee.training.loop import Work, train_step, trainable
from medisee.training.planning import FewImages
from medisee.training.recipe import Recipe, Stage
from medisee.training.targets import Targets

RATES = {"mllm": 1e-5, "fusion": 1e-5, "box_decoder": 1e-5, "projector": 1e-5}
WORDS = {"text": 1.0, "decision": 1.0, "state": 1.0, "category": 1.0}
STAGES = {
    "language": {"rates": {"mllm": 1e-5}, "weights": WORDS},
    "joint": {
        "rates": {**RATES, "segmenter.mask_decoder": 1e-5},
        "weights": {**WORDS, "l1": 1.0, "giou": 1.0, "bce": 2.0, "dice": 0.5},
    },
}
"""What is trained with which losses; rates are low, so that both take the same steps."""


class EachImageAnew(Context):
    """Encodes whatever is asked for, again and again."""

    encoder: nn.Module

    @classmethod
    def of(cls, context: Context) -> EachImageAnew:
        """The same data and model, with the encoder in the form in which features are cached."""
        made = cls(**vars(context))
        made.encoder = copy.deepcopy(context.model.segmenter.vision_encoder).eval()
        fold_batch_norms(made.encoder)
        made.encoder.to(compute_dtype(context.device)).to(memory_format=torch.channels_last)
        return made

    def embedding(self, data: Targets, rows: Sequence[int], views: Sequence[int]) -> Tensor:
        """(B, C, E, E) fp32."""
        shown = zip(rows, views, strict=True)
        pixels = torch.from_numpy(np.stack([data.pixels(*pair).pixels for pair in shown]))
        pixels = pixels.to(self.device, next(self.encoder.parameters()).dtype)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self.encoder(pixels.contiguous(memory_format=torch.channels_last)).float()

    def pooled(self, data: Targets, rows: Sequence[int], views: Sequence[int]) -> Tensor:
        """(B, C, 16, 16) fp32."""
        return nn.functional.adaptive_avg_pool2d(self.embedding(data, rows, views), 16)


class OneQuestionASequence(Language):
    """The same questions, each about an image of its own."""

    def _draw(
        self, random: np.random.Generator
    ) -> tuple[list[int], list[tuple[int, QARecord]], bool]:
        images, chosen, explain = super()._draw(random)
        alone = [(place, record) for place, (_, record) in enumerate(chosen)]
        return [images[place] for place, _ in chosen], alone, explain


class Arrangement:
    """One way to take a step, on weights of its own that start alike."""

    def __init__(self, context: Context, task: type[Language], recipe: Recipe) -> None:
        self.context, self.recipe, [self.stage] = context, recipe, recipe.stages
        optimizer = torch.optim.AdamW(trainable(context.model, self.stage), fused=True)
        work = Work(context.model, task(context, self.stage), recipe.precision)
        self.work, self.optimizer = context.machine.prepare(work, optimizer)
        self.losses: list[float] = []

    def step(self, number: int, clock: Callable[[], float]) -> float:
        """Seconds of one step."""
        started = clock()
        machine = self.context.machine
        losses = train_step(machine, self.work, self.optimizer, self.recipe, self.stage, number)
        if self.context.device.type == "cuda":
            torch.cuda.synchronize()
        self.losses.append(losses["total"])
        return clock() - started


def plan(arguments: argparse.Namespace, cache: str) -> Recipe:
    """One stage, with which both arrangements are measured."""
    stage = Stage(
        name="measured",
        task=arguments.task,
        steps=arguments.steps + 1,
        batch=arguments.images,
        questions=arguments.questions,
        warmup=0,
        explain=0.0,
        true_boxes=(0.0, 0.0),
        **STAGES[arguments.task],
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fast = compute_dtype(device) == torch.bfloat16
    return Recipe(
        data=str(arguments.data),
        init=arguments.model,
        out=cache,
        cache=cache,
        records=100 * arguments.images,
        threads=arguments.threads,
        precision="bf16" if fast else "fp32",
        stages=[stage],
    )


def questions_of(arrangement: Arrangement, number: int) -> int:
    """How many a step has."""
    task = arrangement.work.task
    _, chosen, _ = task._draw(np.random.default_rng([arrangement.context.seed, number, 11]))
    return len(chosen)


def main() -> None:
    """Measures both arrangements and prints their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="an untrained nano, or any of its form")
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", choices=list(STAGES), default="joint")
    parser.add_argument("--images", type=int, default=4, help="images a step")
    parser.add_argument("--questions", type=int, default=7, help="questions an image")
    parser.add_argument("--steps", type=int, default=3, help="steps, after one to warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--processor-time", action="store_true", help="count the processor's time (a busy machine)"
    )
    arguments = parser.parse_args()
    find_model(arguments.model)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as cache:
        images = FewImages(arguments.data, 2 * arguments.images)
        clock = time.process_time if arguments.processor_time else time.perf_counter
        compare(plan(arguments, cache), images, clock)


def compare(recipe: Recipe, index: Index, clock: Callable[[], float]) -> None:
    """Both arrangements take each step in turn."""
    context = training.prepare(recipe, index)
    other = EachImageAnew.of(context)
    other.model = copy.deepcopy(context.model)
    ours = Arrangement(context, Language, recipe)
    theirs = Arrangement(other, OneQuestionASequence, recipe)
    found: dict[str, list[float]] = {"ours": [], "authors'": []}
    for number in range(recipe.stages[0].steps):
        count = questions_of(ours, number)
        for name, arrangement in (("ours", ours), ("authors'", theirs)):
            seconds = arrangement.step(number, clock)
            if number:  # the first one warms up
                found[name].append(count / seconds)
    show(recipe, context, found, ours, theirs)
    if clock is time.process_time:
        print("seconds are the processor's, of all threads together")


def show(
    recipe: Recipe,
    context: Context,
    found: dict[str, list[float]],
    ours: Arrangement,
    theirs: Arrangement,
) -> None:
    """The figures, and how far the first losses of the two are apart."""
    [stage] = recipe.stages
    device = context.device
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"{stage.task}, {stage.batch} images a step, up to {stage.questions} questions each")
    print(f"{device.type} ({name}), {torch.get_num_threads()} threads, {recipe.precision}")
    for arrangement, rates in found.items():
        told = ", ".join(f"{rate:.2f}" for rate in rates)
        print(f"{arrangement}: {statistics.median(rates):.2f} questions a second ({told})")
    ratio = statistics.median(found["ours"]) / statistics.median(found["authors'"])
    print(f"ratio: {ratio:.1f}")
    print(f"loss of the first step: {ours.losses[0]:.4f} ours, {theirs.losses[0]:.4f} authors'")


if __name__ == "__main__":
    main()
