"""`medisee train`: train a model from a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medisee.commands.screen import human_bytes, output, plain_table, print_text, spinner
from medisee.errors import InputError
from medisee.extras import needs_extra

if TYPE_CHECKING:
    from medisee.training import Recipe

__all__ = ["train"]


def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="YAML file that states the whole training.")
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run in the recipe's folder stopped.")
    ] = False,
    init: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Start from this model instead of the recipe's."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what each stage trains and takes; keep nothing.")
    ] = False,
) -> None:
    """Train a model as a recipe says.

    Checkpoints, log and the trained model go to the folder that the recipe calls out. A run that
    was stopped at any moment goes on with --resume as if nothing had happened. It runs on a GPU
    where there is one, and on several under torchrun --nproc-per-node N -m medisee train RECIPE.

    Example: medisee train configs/nano.yaml --init nano
    """
    with needs_extra("training", "train"):
        from medisee.training import read_recipe
        from medisee.training import train as run
    plan = read_recipe(recipe)
    if init is not None:
        plan = plan.model_copy(update={"init": init})
    if dry_run:
        _show(plan)
        return
    _check_fresh(Path(plan.out), resume)
    folder = run(plan)
    if os.environ.get("RANK", "0") == "0":  # set by torchrun and accelerate launch
        print_text(f"The trained model is in {folder}: medisee ask IMAGE QUESTION --model {folder}")


def _show(plan: Recipe) -> None:
    from medisee.training.planning import measure_stages, plan_stages

    with spinner("Reading the model ..."):
        stages = list(plan_stages(plan))
    with spinner("Running two steps of each stage on a few images ..."):
        costs = measure_stages(plan)
    rows = [
        [
            stage.name,
            stage.task,
            f"{stage.steps:,}",
            f"{stage.trained:,}",
            f"{stage.frozen:,}",
            human_bytes(costs[stage.name].memory or stage.memory),
            _duration(costs[stage.name].seconds * stage.steps),
        ]
        for stage in stages
    ]
    head = ["stage", "task", "steps", "trained", "frozen", "memory, at least", "time, about"]
    output().print(plain_table(head, rows, right={2, 3, 4, 5, 6}))


def _duration(seconds: float) -> str:
    """12 s, 5 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _check_fresh(out: Path, resume: bool) -> None:
    """An earlier run is neither mixed into a new one nor taken for one by mistake."""
    begun = out.is_dir() and any(out.iterdir())
    if begun and not resume:
        raise InputError(
            f"{out} holds an earlier run: go on with --resume, or change the recipe's out"
        )
    if resume and not begun:
        raise InputError(f"{out} holds no run to go on with; leave --resume out")
