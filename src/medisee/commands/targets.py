"""`medisee targets`: what a model was trained to find, and how well it does."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from medisee.commands.options import JsonOption, ModelOption
from medisee.commands.screen import output, plain_table, print_json, print_text
from medisee.hub import TargetRecord, find_model, model_info

__all__ = ["targets"]


def targets(
    search: Annotated[
        str, typer.Argument(metavar="[TEXT]", help="Only targets whose name holds this text.")
    ] = "",
    model: ModelOption = "nano",
    as_json: JsonOption = False,
) -> None:
    """List what a model was trained to find, with its test scores.

    Dice is 1 where mask and truth are the same and 0 where they do not touch, as a mean over the
    test images; "not measured" where the test set has none. Other things can be asked for too,
    but nobody knows how well they are found.
    """
    known = model_info(find_model(model))["targets"]
    found = [target for target in known if search.lower() in target.name.lower()]
    if as_json:
        print_json([asdict(target) for target in found])
    elif found:
        output().print(plain_table(*_table(found), right={1, 2, 3}))
    elif known:
        print_text(f"None of the {len(known)} targets of {model} has {search!r} in its name.")
    else:
        print_text(f"{model} does not say what it was trained to find.")


def _table(found: list[TargetRecord]) -> tuple[list[str], list[list[str]]]:
    headings = ["target", "trained on", "tested on", "test Dice"]
    rows = [
        [
            target.name,
            f"{target.n_train:,}",
            f"{target.n_test:,}",
            "not measured" if target.dice is None else f"{target.dice:.2f}",
        ]
        for target in found
    ]
    return headings, rows
