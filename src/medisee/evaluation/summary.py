"""The tables that README, model card and benchmark page share, from `report.json` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medisee.evaluation.metrics import PRINTED

__all__ = ["PLAIN", "figures_table", "plain_table", "refusal_line"]

PLAIN = {
    "true-boxes": "true box given to the untouched LiteMedSAM (a ceiling)",
    "category-means": "mean mask of the category (knows the label)",
    "centred-box": "centred box (a floor)",
}
"""Plain comparisons that stand beside a model: key and what tables call them."""


def figures_table(found: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> str:
    """The main table: the model's kinds of question, then the plain comparisons."""
    rows = {f"nano, {kind}": figures for kind, figures in found["kinds"].items()}
    for name, report in others.items():
        rows |= {
            f"{PLAIN[name]}, {kind}": {k: v for k, v in figures.items() if k != "named"}
            for kind, figures in report["kinds"].items()
            if kind in ("referring", "implicit")
        }
    return plain_table("", rows)


def refusal_line(found: Mapping[str, Any]) -> str:
    """How often absent targets are refused, and present ones answered."""
    rates = found["refusal"]
    reasons = [
        f"{name.replace('_', ' ')} {100 * value:.0f} %"
        for name, value in rates.items()
        if name not in ("n_acc", "t_acc", "mcc") and value is not None
    ]
    line = f"\nPresent targets answered: {100 * rates['t_acc']:.1f} %."
    if rates["n_acc"] is not None:
        line += f" Absent ones refused: {100 * rates['n_acc']:.1f} % ({', '.join(reasons)})."
    if found["ece"] is not None:
        line += f" Expected calibration error of the score: {100 * found['ece']:.1f} %."
    return line + "\n"


def plain_table(first: str, rows: Mapping[str, Any]) -> str:
    """Rows of a report's figures as Markdown; `first` heads the column of their names."""
    lines = [f"| {first} | n | {' | '.join(PRINTED.values())} |", "| --- " * 9 + "|"]
    for name, figures in rows.items():
        cells = [_cell(figures.get(key)) for key in PRINTED]
        lines.append(f"| {name} | {figures['dice']['n']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(figure: dict[str, float] | None) -> str:
    if figure is None:
        return "-"
    return f"{100 * figure['value']:.1f} ({100 * figure['low']:.0f}-{100 * figure['high']:.0f})"
