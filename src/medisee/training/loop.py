"""The training loop: stages, checkpoints, exact resume, progress, metrics."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import DataError
from ..model import MediSeeModel
from ..model.losses import weighted_sum
from .adapters import MARK
from .context import Context, Task
from .recipe import Recipe, Stage
from .tasks import TASKS

LINE_EVERY = 25
"""Steps between two lines of progress where there is no terminal to draw a bar on."""


def run_stage(context: Context, recipe: Recipe, stage: Stage, folder: Path) -> None:
    """Runs one stage to its end, from its last checkpoint where there is one."""
    groups = trainable(context.model, stage)
    optimizer = torch.optim.AdamW(groups, weight_decay=stage.weight_decay, fused=True)
    task: Task = TASKS[stage.task](context, stage)
    log = MetricsLog(folder / "metrics.jsonl")
    start = load_checkpoint(context.model, optimizer, folder)
    began = time.monotonic()
    recent: dict[str, float] = {}
    with _progress() as progress:
        bar = progress.add_task(stage.name, total=stage.steps, completed=start, losses="")
        for step in range(start, stage.steps):
            losses = train_step(context.model, task, optimizer, recipe, stage, step)
            recent = {k: 0.95 * recent.get(k, v) + 0.05 * v for k, v in losses.items()}
            progress.update(bar, advance=1, losses=_row(recent))
            done = step + 1
            if not progress.console.is_terminal and done % LINE_EVERY == 0:
                seconds = time.monotonic() - began
                progress.console.print(
                    f"{stage.name} {done}/{stage.steps} {seconds:.0f} s {_row(recent)}"
                )
            if done % stage.validate_every == 0 or done == stage.steps:
                context.model.eval()
                log.write(stage.name, done, time.monotonic() - began, recent, task.validate())
            if done % recipe.checkpoint_every == 0 or done == stage.steps:
                save_checkpoint(context.model, optimizer, folder, done)


def train_step(
    model: MediSeeModel,
    task: Task,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    stage: Stage,
    step: int,
) -> dict[str, float]:
    """One optimiser step; returns the unweighted losses.

    Raises:
        DataError: when a loss has no weight, or it or its gradient is not finite; the last
            checkpoint is kept.
    """
    # Dropout too follows from the step, so that a resumed run equals an undisturbed one.
    torch.manual_seed((recipe.seed * 1_000_003 + step) % 2**31)
    model.train()
    model.segmenter.vision_encoder.eval()
    factor = schedule(step, stage)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for part in range(stage.accumulate):
        number = step * stage.accumulate + part
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            losses = task.losses(number, step / stage.steps)
        if unweighted := losses.keys() - stage.weights.keys():
            raise DataError(f"stage {stage.name}: weights lack {', '.join(sorted(unweighted))}")
        losses = losses | {"total": weighted_sum(losses, stage.weights)}
        (losses["total"] / stage.accumulate).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros(())) + value.detach() / stage.accumulate
    norm = torch.nn.utils.clip_grad_norm_(
        [p for group in optimizer.param_groups for p in group["params"]], stage.clip
    )
    # Checked before the step: a checkpoint never holds weights that are not finite.
    if not torch.isfinite(sums["total"] + norm):
        raise DataError(
            f"stage {stage.name}: the loss is not finite at step {step}; lower the learning rate "
            "and resume from the last checkpoint"
        )
    optimizer.step()
    return {name: float(value) for name, value in sums.items()}


def trainable(model: MediSeeModel, stage: Stage) -> list[dict[str, Any]]:
    """Parameter groups by name prefix (the longest that fits); all others are frozen."""
    if not stage.rates:
        raise DataError(f"stage {stage.name}: rates name nothing to train")
    groups: dict[str, list[Tensor]] = {prefix: [] for prefix in stage.rates}
    for name, parameter in model.named_parameters():
        fitting = [p for p in stage.rates if _covers(p, name)]
        parameter.requires_grad_(bool(fitting))
        if fitting:
            groups[max(fitting, key=len)].append(parameter)
    for prefix, parameters in groups.items():
        if not parameters:
            raise DataError(f"stage {stage.name}: no parameter begins with {prefix!r}")
    return [
        {"params": parameters, "lr": stage.rates[prefix], "base_lr": stage.rates[prefix]}
        for prefix, parameters in groups.items()
    ]


def _covers(prefix: str, name: str) -> bool:
    """Adapters are trained by their own rate, never by that of the part which they lie in."""
    if MARK in name or prefix == MARK:
        return prefix == MARK and MARK in name
    return name.startswith(prefix)


def schedule(step: int, stage: Stage) -> float:
    """Linear warm-up, then a cosine down to a twentieth, or a linear fall to nothing."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    if stage.decay == "linear":
        return 1 - progress
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def save_checkpoint(
    model: MediSeeModel, optimizer: torch.optim.Optimizer, folder: Path, step: int
) -> None:
    """Writes beside the old checkpoint, then swaps: a kill at any moment leaves a whole one."""
    part, final, old = folder / "checkpoint.part", folder / "checkpoint", folder / "checkpoint.old"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    weights = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    save_file(weights, part / "trained.safetensors")
    torch.save(optimizer.state_dict(), part / "optimizer.pt")
    (part / "state.json").write_text(json.dumps({"step": step}))
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    part.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(
    model: MediSeeModel, optimizer: torch.optim.Optimizer | None, folder: Path
) -> int:
    """Loads the last whole checkpoint of a stage; the number of steps done, 0 without one.

    Raises:
        DataError: a checkpoint of another model.
    """
    found = next((f for n in ("checkpoint", "checkpoint.old") if (f := folder / n).exists()), None)
    if found is None:
        return 0
    weights = load_file(found / "trained.safetensors")
    sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
    if any(sizes.get(name) != value.shape for name, value in weights.items()):
        raise DataError(f"{found} belongs to another model; choose another output folder")
    model.load_state_dict(weights, strict=False)
    if optimizer is not None:
        optimizer.load_state_dict(torch.load(found / "optimizer.pt", weights_only=True))
    return int(json.loads((found / "state.json").read_text())["step"])


class MetricsLog:
    """Appends one JSON line per measurement."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def write(
        self,
        stage: str,
        step: int,
        seconds: float,
        losses: dict[str, float],
        metrics: dict[str, float],
    ) -> None:
        row = {"stage": stage, "step": step, "seconds": round(seconds, 1)}
        row |= {f"loss_{name}": round(value, 4) for name, value in losses.items()}
        row |= {f"val_{name}": round(value, 4) for name, value in metrics.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _row(losses: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in losses.items())


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
        console=Console(stderr=True),
    )
