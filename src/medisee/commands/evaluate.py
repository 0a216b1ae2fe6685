"""`medisee evaluate`: score a model on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisee.commands.asking import check_folder
from medisee.commands.options import DeviceOption, JsonOption, ModelOption, RuntimeOption
from medisee.commands.screen import output, print_json, print_text, spinner

__all__ = ["evaluate"]


def evaluate(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder in SA-Med2D's layout with index.jsonl.")
    ],
    questions: Annotated[
        Path | None,
        typer.Option(help="Question file (JSONL). Default: every label, asked for by name."),
    ] = None,
    split: Annotated[str, typer.Option(help="Part of the data set: val or test.")] = "test",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for predictions and report.")
    ] = Path("evaluation"),
    limit: Annotated[
        int, typer.Option(min=0, help="Images for each label or question; 0 for all.")
    ] = 4,
    explain: Annotated[
        bool, typer.Option("--explain/--no-explain", help="Score the words too, or masks alone.")
    ] = True,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    runtime: RuntimeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on labelled images: Dice, IoU, boxes, names, refusals.

    The model runs freely: it never sees a reference answer. Predictions are kept as they come,
    so a run that was stopped goes on where it was. DIR/report.md has the tables.

    Example: medisee evaluate data --questions questions.jsonl --split test
    """
    from medisee import evaluation
    from medisee.predictor import load

    check_folder(out)
    with spinner(f"Loading {model} ..."):
        loaded = load(model, device, runtime)
    report = evaluation.evaluate(
        loaded, data, split, questions=questions, out=out, limit=limit or None, explain=explain
    )
    if as_json:
        print_json(report.to_dict())
    else:
        _show(report.to_markdown())
        print_text(f"Report and predictions are in {out}.")


def _show(markdown: str) -> None:
    from rich.markdown import Markdown

    output().print(Markdown(markdown))
