"""`medisee train`: train a model from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisee.commands.screen import print_text
from medisee.errors import InputError
from medisee.extras import needs_extra

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
) -> None:
    """Train a model as a recipe says.

    Checkpoints, log and the trained model go to the folder that the recipe calls out. A run that
    was stopped at any moment goes on with --resume as if nothing had happened.

    Example: medisee train configs/nano.yaml --init nano
    """
    with needs_extra("training", "train"):
        from medisee.training import read_recipe
        from medisee.training import train as run
    plan = read_recipe(recipe)
    if init is not None:
        plan = plan.model_copy(update={"init": init})
    _check_fresh(Path(plan.out), resume)
    folder = run(plan)
    print_text(f"The trained model is in {folder}: medisee ask IMAGE QUESTION --model {folder}")


def _check_fresh(out: Path, resume: bool) -> None:
    """An earlier run is neither mixed into a new one nor taken for one by mistake."""
    begun = out.is_dir() and any(out.iterdir())
    if begun and not resume:
        raise InputError(
            f"{out} holds an earlier run: go on with --resume, or change the recipe's out"
        )
    if resume and not begun:
        raise InputError(f"{out} holds no run to go on with; leave --resume out")
