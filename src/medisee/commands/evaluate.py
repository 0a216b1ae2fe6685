"""`medisee evaluate`: score a model on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisee.commands.asking import check_folder
from medisee.commands.bench import (
    DataArgument,
    ExplainOption,
    LimitOption,
    QuestionsOption,
    SplitOption,
    prepare,
    select,
    show_report,
)
from medisee.commands.options import DeviceOption, JsonOption, ModelOption, RuntimeOption

__all__ = ["evaluate"]


def evaluate(
    data: DataArgument,
    questions: QuestionsOption = None,
    split: SplitOption = "test",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for predictions and report.")
    ] = Path("evaluation"),
    limit: LimitOption = 4,
    explain: ExplainOption = True,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    runtime: RuntimeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model on labelled images: Dice, IoU, boxes, names, refusals.

    The model runs freely: it never sees a reference answer. Predictions are kept as they come,
    so a run that was stopped goes on where it was. DIR/report.md has the tables. This is
    `medisee bench run` and `medisee bench score` in one, for MediSee models.

    Example: medisee evaluate data --questions questions.jsonl --split test
    """
    from medisee import evaluation

    check_folder(out)
    settings = {"model": model} | ({"runtime": runtime} if runtime else {})
    system = "nano" if model == "nano" else "medisee"
    selection = select(questions, split, limit)
    make, index, about = prepare(system, settings, data, selection, device)
    report = evaluation.evaluate(make, index, selection, out, explain, about)
    show_report(report, out, as_json)
