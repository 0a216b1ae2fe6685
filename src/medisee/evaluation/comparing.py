"""Are two systems different? Paired tests on the questions that both answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medisee.errors import DataError
from medisee.evaluation.metrics import PRINTED, Difference, holm, paired_difference
from medisee.evaluation.report import Report, Row, columns

__all__ = ["Comparison", "compare_systems", "comparison_table"]

COMPARED = ("dice", "mean_iou", "cumulative_iou", "box_iou", "accuracy_at_0.5")


@dataclass(frozen=True)
class Comparison:
    """One figure of the first system minus that of another, on the questions of a kind.

    corrected: the p-value after Holm's correction for all tests that were made together.
    """

    first: str
    second: str
    kind: str
    figure: str
    difference: Difference
    corrected: float


def compare_systems(reports: Sequence[Report]) -> list[Comparison]:
    """The first system against each other one; DataError where they were asked other questions."""
    first, *others = reports
    found = [
        (other.model, kind, name, _difference(first.of_kind(kind), other.of_kind(kind), name))
        for other in others
        for kind in first.kinds
        for name in COMPARED
    ]
    corrected = holm([difference.p for *_, difference in found])
    return [
        Comparison(first.model, *each, float(p)) for each, p in zip(found, corrected, strict=True)
    ]


def _difference(first: Sequence[Row], second: Sequence[Row], figure: str) -> Difference:
    if [row.pair for row in first] != [row.pair for row in second]:
        raise DataError("the systems were asked different questions; run them on the same ones")
    sides = []
    for rows in (first, second):
        tops, belows = columns(rows)
        sides.append((tops[figure], belows[figure]))
    return paired_difference(sides[0], sides[1], [row.pair.image for row in first])


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Markdown, in per cent."""
    lines = [
        "| first | second | kind | figure | difference (95 %) | p | p corrected |",
        "| --- " * 7 + "|",
    ]
    for each in comparisons:
        d = each.difference
        interval = f"{100 * d.value:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})"
        cells = [each.first, each.second, each.kind, PRINTED[each.figure], interval]
        lines.append(f"| {' | '.join(cells)} | {d.p:.4f} | {each.corrected:.4f} |")
    return "\n".join([*lines, ""])
