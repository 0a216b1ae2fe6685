"""`medisee data build`: a reasoning data set from labelled images."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from medisee.commands.data_stats import show_stats
from medisee.commands.options import JsonOption
from medisee.commands.screen import print_json, print_text, progress
from medisee.errors import InputError

__all__ = ["build_data"]


def build_data(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder in SA-Med2D's layout (see data import).")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the set that is built.")],
    per_target: Annotated[
        int,
        typer.Option(min=1, max=64, help="Implicit questions for each category of each image."),
    ] = 16,
    seed: Annotated[int, typer.Option(help="Another seed gives other questions.")] = 0,
    shard: Annotated[
        str,
        typer.Option(metavar="I/N", help="Do the I-th of N shares of the work, such as 2/5."),
    ] = "1/1",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes; 0 for one on each processor.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Build a reasoning data set from labelled images: questions, answers, splits, data card.

    Writes DIR/train.jsonl, val.jsonl, test.jsonl and card.md; everything else, with what was left
    out and why, is in DIR/work. The same input gives the same files. A build that was stopped at
    any moment goes on when it is started again.

    Example: medisee data build data --out mlmr-sd
    """
    from rich.progress import Progress

    from medisee.engine.build import Settings, build

    settings = Settings(per_target=per_target, seed=seed)
    with Progress(console=progress(), transient=True) as bar:
        task = bar.add_task("Images", total=None)
        built = build(
            data,
            out,
            settings,
            shard=_shard(shard),
            workers=workers or os.cpu_count() or 1,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if built is None:
        print_text(f"Share {shard} is done; the run that finds all shares done writes the set.")
    elif as_json:
        print_json(built.stats.to_dict())
    else:
        show_stats(built.stats)
        print_text(f"The set is in {out}; {out / 'card.md'} describes it.")


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard must be I/N with I from 1 to N, such as 2/5, not '{text}'")
    return int(match[1]), int(match[2])
