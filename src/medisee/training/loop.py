"""The training loop: stages, checkpoints, exact resume, progress, metrics.

A batch and its dropout follow from the batch's number alone. Several processes take every n-th
batch of a step each, so that a run does not depend on how many there are.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import DataError
from ..model import MediSeeModel
from ..model.losses import weighted_sum
from .adapters import covers
from .context import Context, Losses, Task
from .machine import mean_over_processes
from .recipe import Recipe, Stage
from .tasks import TASKS

LINE_EVERY = 25
"""Steps between two lines of progress where there is no terminal to draw a bar on."""


def run_stage(context: Context, recipe: Recipe, stage: Stage, folder: Path) -> None:
    """Runs one stage to its end, from its last checkpoint where there is one."""
    machine, groups = context.machine, trainable(context.model, stage)
    optimizer = torch.optim.AdamW(groups, weight_decay=stage.weight_decay, fused=True)
    start = load_checkpoint(context.model, optimizer, folder)
    work = Work(context.model, TASKS[stage.task](context, stage), recipe.precision)
    stepped, prepared = machine.prepare(work, optimizer)
    log = StageLog(machine, stage, folder, start)
    with log:
        for step in range(start, stage.steps):
            log.losses(train_step(machine, stepped, prepared, recipe, stage, step))
            done = step + 1
            if done % stage.validate_every == 0 or done == stage.steps:
                log.metrics(done, _measured(work, recipe))
            saved = done % recipe.checkpoint_every == 0 or done == stage.steps
            if saved and machine.is_main_process:
                save_checkpoint(context.model, optimizer, folder, done)
    machine.free_memory()


def _measured(work: Work, recipe: Recipe) -> dict[str, float]:
    """The task's figures on the validation split; in bf16 only where weights are."""
    work.eval()
    device = work.model.device.type
    with torch.autocast(device, torch.bfloat16, enabled=recipe.base != "fp32"):
        return work.task.validate()


class Work(nn.Module):
    """A stage's task as a module, whose forward gives the losses: what accelerate can spread."""

    def __init__(self, model: MediSeeModel, task: Task, precision: str = "fp32") -> None:
        super().__init__()
        self.model, self.task, self.precision = model, task, precision

    def forward(self, number: int, progress: float) -> Losses:
        device = self.model.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.task.losses(number, progress)

    def train(self, mode: bool = True) -> Work:
        """The segmenter's encoder keeps the statistics of its batch norms, trained or not."""
        super().train(mode)
        self.model.segmenter.vision_encoder.eval()
        return self


def train_step(
    machine: Accelerator,
    work: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    stage: Stage,
    step: int,
) -> dict[str, float]:
    """One optimiser step of all processes; returns the unweighted losses, averaged over them.

    Args:
        work, optimizer: a `Work` and its optimiser, prepared by accelerate.

    Raises:
        DataError: when a loss has no weight, or it or its gradient is not finite; the last
            checkpoint is kept.
    """
    work.train()
    factor = schedule(step, stage)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    optimizer.zero_grad(set_to_none=True)
    numbers = range(step * stage.accumulate, (step + 1) * stage.accumulate)
    own = numbers[machine.process_index :: machine.num_processes]
    sums: dict[str, Tensor] = {}
    for number in own:
        # Gradients are averaged over the processes once, with the last batch's.
        with nullcontext() if number == own[-1] else machine.no_sync(work):
            losses = _losses(work, recipe, stage, number, step / stage.steps)
            machine.backward(losses["total"] / len(own))
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach() / len(own)
    norm = machine.clip_grad_norm_(
        [p for group in optimizer.param_groups for p in group["params"]], stage.clip
    )
    means = mean_over_processes({name: float(value) for name, value in sums.items()})
    # Checked before the step: a checkpoint never holds weights that are not finite.
    if not math.isfinite(means["total"] + float(norm)):
        raise DataError(
            f"stage {stage.name}: the loss is not finite at step {step}; lower the learning rate "
            "and resume from the last checkpoint"
        )
    optimizer.step()
    return means


def _losses(
    work: nn.Module, recipe: Recipe, stage: Stage, number: int, progress: float
) -> dict[str, Tensor]:
    """The losses of one batch, with their `total`."""
    # Dropout too follows from the batch, so that a resumed run equals an undisturbed one.
    torch.manual_seed((recipe.seed * 1_000_003 + number) % 2**31)
    losses: dict[str, Tensor] = work(number, progress)
    if unweighted := losses.keys() - stage.weights.keys():
        raise DataError(f"stage {stage.name}: weights lack {', '.join(sorted(unweighted))}")
    return losses | {"total": weighted_sum(losses, stage.weights)}


def trainable(model: MediSeeModel, stage: Stage) -> list[dict[str, Any]]:
    """Parameter groups by name prefix (the longest that fits); all others are frozen."""
    if not stage.rates:
        raise DataError(f"stage {stage.name}: rates name nothing to train")
    groups: dict[str, list[Tensor]] = {prefix: [] for prefix in stage.rates}
    for name, parameter in model.named_parameters():
        fitting = [p for p in stage.rates if covers(p, name)]
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
    """Writes beside the old checkpoint, then swaps: a kill at any moment leaves a whole one.

    Raises:
        DataError: it cannot be written; the old one is kept.
    """
    part, final, old = folder / "checkpoint.part", folder / "checkpoint", folder / "checkpoint.old"
    shutil.rmtree(part, ignore_errors=True)
    try:
        _write_checkpoint(model, optimizer, part, step)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's is a RuntimeError
        shutil.rmtree(part, ignore_errors=True)
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"the checkpoint of step {step} cannot be written to {folder} ({reason}): make room, "
            "then go on with --resume from the one before"
        ) from error
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    part.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _write_checkpoint(
    model: MediSeeModel, optimizer: torch.optim.Optimizer, part: Path, step: int
) -> None:
    part.mkdir(parents=True)
    weights = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    save_file(weights, part / "trained.safetensors")
    torch.save(optimizer.state_dict(), part / "optimizer.pt")
    (part / "state.json").write_text(json.dumps({"step": step}), encoding="utf-8")


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
        stored = torch.load(found / "optimizer.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(stored)
    return int(json.loads((found / "state.json").read_text("utf-8"))["step"])


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
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class StageLog:
    """Shows a stage's progress and smoothed losses; writes metrics and to the run's trackers.

    Only the first process shows and writes. A context manager.
    """

    def __init__(self, machine: Accelerator, stage: Stage, folder: Path, start: int) -> None:
        self.machine, self.stage, self.done = machine, stage, start
        self.file = MetricsLog(folder / "metrics.jsonl") if machine.is_main_process else None
        self.recent: dict[str, float] = {}
        self.began = time.monotonic()
        self.progress = _progress(disable=not machine.is_main_process)
        self.bar = self.progress.add_task(stage.name, total=stage.steps, completed=start, losses="")

    def __enter__(self) -> None:
        self.progress.start()

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def losses(self, values: dict[str, float]) -> None:
        """The losses of the next step."""
        self.done += 1
        self.recent = {k: 0.95 * self.recent.get(k, v) + 0.05 * v for k, v in values.items()}
        self.progress.update(self.bar, advance=1, losses=_row(self.recent))
        if self.done % LINE_EVERY:
            return
        self._track("loss", values)
        console = self.progress.console
        if self.file is not None and not console.is_terminal:
            name, steps = self.stage.name, self.stage.steps
            console.print(f"{name} {self.done}/{steps} {self.seconds:.0f} s {_row(self.recent)}")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """What was measured on the validation split after a step."""
        self._track("val", values)
        if self.file is not None:
            self.file.write(self.stage.name, step, self.seconds, self.recent, values)

    def _track(self, kind: str, values: dict[str, float]) -> None:
        named = {f"{self.stage.name}/{kind}_{name}": value for name, value in values.items()}
        self.machine.log(named, step=self.done)


def _row(losses: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in losses.items())


def _progress(disable: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
        console=Console(stderr=True),
        disable=disable,
    )
