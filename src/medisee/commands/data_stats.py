"""`medisee data stats`: what a built set holds, in tables and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medisee.commands.options import JsonOption
from medisee.commands.screen import output, plain_table, print_json, print_text, print_written

if TYPE_CHECKING:
    from medisee.engine.stats import Stats

__all__ = ["data_stats", "show_stats"]


def data_stats(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a built set.")],
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Draw word cloud, categories, lengths and perspectives into this folder (PNG).",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count what a built set holds, what its review dropped, and what was left out and why.

    Example: medisee data stats mlmr-sd --figures figures
    """
    from medisee.engine.figures import draw_figures
    from medisee.engine.stats import read_stats

    stats = read_stats(folder)
    if figures is not None:
        print_written(draw_figures(stats, figures))
    if as_json:
        print_json(stats.to_dict())
    else:
        show_stats(stats)


def show_stats(stats: Stats) -> None:
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
    quarantined = stats.build.get("quarantined", {})
    _table(["quarantined because", "times"], [[why, f"{n:,}"] for why, n in quarantined.items()])
    _table(
        ["left out because", "files", "pairs"],
        [[why, f"{n['files']:,}", f"{n['pairs']:,}"] for why, n in sorted(stats.left_out.items())],
    )
    _table(
        ["category", "records", "images"],
        [
            [name, f"{n:,}", f"{stats.category_images[name]:,}"]
            for name, n in stats.categories.most_common()
        ],
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
