"""`medisee data build` and `medisee data stats`: reasoning data sets from labelled images."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medisee.commands.options import JsonOption
from medisee.commands.screen import output, plain_table, print_json, print_text, progress
from medisee.errors import InputError

if TYPE_CHECKING:
    from medisee.engine.stats import Stats

__all__ = ["build_data", "data_stats"]


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
        _show(built.stats)
        print_text(f"The set is in {out}; {out / 'card.md'} describes it.")


def data_stats(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a built set.")],
    as_json: JsonOption = False,
) -> None:
    """Count what a built set holds, what its review dropped, and what was left out and why.

    Example: medisee data stats mlmr-sd
    """
    from medisee.engine.stats import read_stats

    stats = read_stats(folder)
    if as_json:
        print_json(stats.to_dict())
    else:
        _show(stats)


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard must be I/N with I from 1 to N, such as 2/5, not '{text}'")
    return int(match[1]), int(match[2])


def _show(stats: Stats) -> None:
    """Tables: splits and kinds, perspectives and lengths, rules, what was left out, categories."""
    kinds = sorted({kind for counts in stats.kinds.values() for kind in counts})
    rows = [
        [split, f"{number:,}", *(f"{stats.kinds[split][kind]:,}" for kind in kinds)]
        for split, number in stats.records.items()
    ]
    _table(["split", "records", *kinds], rows)
    balance = {**stats.perspectives, **stats.lengths}
    balance.update({f"pass {number}": count for number, count in stats.passes.items()})
    _table(["implicit", "records"], [[name, f"{n:,}"] for name, n in sorted(balance.items())])
    _table(["rule", "checked", "mended", "dropped", "most often"], _rules(stats))
    _table(
        ["left out because", "files", "pairs"],
        [[why, f"{n['files']:,}", f"{n['pairs']:,}"] for why, n in sorted(stats.left_out.items())],
    )
    _table(
        ["category", "records"], [[name, f"{n:,}"] for name, n in stats.categories.most_common()]
    )
    for name, number in stats.build["leaks"].items():
        print_text(f"{name}: {number:,}")
    print_text(f"SHA-256: {stats.checksum}", wrap=False)


def _rules(stats: Stats) -> list[list[str]]:
    return [
        [
            rule,
            *(f"{counts[what]:,}" for what in ("checked", "mended", "dropped")),
            stats.reasons[rule][0][0] if stats.reasons.get(rule) else "",
        ]
        for rule, counts in stats.build["rules"].items()
    ]


def _table(head: list[str], rows: list[list[str]]) -> None:
    if rows:
        output().print(plain_table(head, rows, right=set(range(1, len(head))) - {4}))
        print_text("")
