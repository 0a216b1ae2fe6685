"""The paper's tables with our figures beside them, as Markdown, CSV or LaTeX.

Published figures (`paper.json`) and measured ones stand in columns of their own and are never
mixed. A measured row is a report's: it joins the published row of the same name, or is a new one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from medisee.errors import DataError

__all__ = ["FORMATS", "TABLES", "Table", "ablation_table", "build_table", "read_report"]

Figure = Mapping[str, float]  # value, low, high, n of a report
Report = Mapping[str, Any]

_METRICS = {
    "dice": ("dice", "Dice"),
    "giou": ("mean_iou", "gIoU"),
    "ciou": ("cumulative_iou", "cIoU"),
    "iou": ("box_iou", "IoU"),
    "acc": ("accuracy_at_0.5", "Acc"),
}
"""The paper's key of a figure -> ours, and what the table prints."""

NOT_RUN = "not run"


@dataclass(frozen=True)
class _Group:
    """A block of columns: which of a report's figures belong into it."""

    key: str
    title: str
    split: str
    kind: str
    length: str | None = None

    def figures(self, report: Report) -> Mapping[str, Figure]:
        if report["split"] != self.split:
            return {}
        if self.length is None:
            return report["kinds"].get(self.kind, {})
        return report["length"].get(self.kind, {}).get(self.length, {})


_REASONING = (
    _Group("val", "val", "val", "implicit"),
    _Group("test_short", "test, short", "test", "implicit", "short"),
    _Group("test_long", "test, long", "test", "implicit", "long"),
)
_BOTH = (
    _Group("referring", "referring", "test", "referring"),
    _Group("reasoning", "reasoning", "val", "implicit"),
)
_REFERRING = (_Group("", "referring", "test", "referring"),)

_MASKS, _BOXES = ("dice", "giou", "ciou"), ("iou", "acc")
TABLES: Mapping[int, tuple[tuple[_Group, ...], tuple[str, ...]]] = {
    1: (_REASONING, _MASKS),
    2: (_REASONING, _BOXES),
    3: (_REFERRING, (*_MASKS, *_BOXES)),
    4: (_BOTH, ("giou", "ciou", *_BOXES)),
    5: (_BOTH, ("giou", "ciou", *_BOXES)),
    6: (_BOTH, ("giou", "ciou", *_BOXES)),
}
"""Number of a table -> its groups of columns and the figures of each."""


@dataclass(frozen=True)
class Table:
    """One table: a title, headings, and rows of text cells."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_markdown(self) -> str:
        """A pipe table below its title."""
        lines = [self.title, "", f"| {' | '.join(self.head)} |", "| --- " * len(self.head) + "|"]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows), ""])

    def to_csv(self) -> str:
        """One line per row; a measured figure with its interval is one cell."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.head, *self.rows])
        return out.getvalue()

    def to_latex(self) -> str:
        """A tabular for the package booktabs."""
        lines = [" & ".join(map(_latex, row)) + r" \\" for row in (self.head, *self.rows)]
        body = "\n".join(lines[1:])
        columns = "l" * 2 + "r" * (len(self.head) - 2)
        return (
            f"% {self.title}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{lines[0]}\n\\midrule\n"
            f"{body}\n\\bottomrule\n\\end{{tabular}}\n"
        )


FORMATS = {"markdown": Table.to_markdown, "csv": Table.to_csv, "latex": Table.to_latex}


def build_table(
    number: int, measured: Iterable[tuple[str, Report]], readiness: Mapping[str, str]
) -> Table:
    """Table 1 to 6 of the paper.

    measured: row name and `report.json` of each run (a row may have several: one for each split).
    readiness: name of a system -> how far it is proved. DataError for another number.
    """
    paper, columns, titles = _layout(number)
    found: dict[str, list[Report]] = {}
    for name, report in measured:
        found.setdefault(name, []).append(report)
    published = dict(_published(paper["rows"]))
    head = ["row", "readiness", *titles]
    rows = [
        [
            name,
            readiness.get(name) or _stated(found.get(name, ())) or "-",
            *(_published_cell(published.get(name), *column) for column in columns),
            *(_measured_cell(found.get(name, ()), *column) for column in columns),
        ]
        for name in [*published, *(name for name in found if name not in published)]
    ]
    title = f"Table {number}: {paper['what']} (per cent; ours with 95 % intervals)"
    return Table(title, head, rows)


def ablation_table(number: int, rows: Iterable[tuple[str, str | None, Report | None]]) -> Table:
    """Table 4, 5 or 6 with rows of our own, each beside the published row that it stands for.

    rows: what a row is, the name of its published row (None: the paper has none), and the report
    on the split val of both kinds of question, or None where it was not run. Published rows that
    none stands for come last. DataError for another number, or a published row that is not there.
    """
    paper, columns, titles = _layout(number)
    published = dict(_published(paper["rows"]))
    left, listed = dict(published), list[list[str]]()
    for what, name, report in rows:
        if name is not None and name not in published:
            raise DataError(f"table {number} of the paper has no row {name!r}")
        left.pop(name or "", None)
        theirs = [_published_cell(published.get(name or ""), *column) for column in columns]
        listed.append([what, name or "-", *theirs, *_on_val(report, columns)])
    for name, row in left.items():
        theirs = [_published_cell(row, *column) for column in columns]
        listed.append(["-", name, *theirs, *("-" for _ in columns)])
    title = (
        f"Table {number}: {paper['what']} (per cent; the paper's at full size on its own data, "
        "ours at nano's size on the validation split, with 95 % intervals)"
    )
    return Table(title, ["ours", "paper", *titles], listed)


def _layout(number: int) -> tuple[Mapping[str, Any], list[tuple[_Group, str]], list[str]]:
    """What the paper tells, the columns of figures, and their titles: theirs, then ours."""
    if number not in TABLES:
        raise DataError(f"the paper has tables 1 to 6, not {number}")
    groups, metrics = TABLES[number]
    columns = [(group, metric) for group in groups for metric in metrics]
    titles = [f"{group.title} {_METRICS[metric][1]}" for group, metric in columns]
    both = [*(f"paper: {title}" for title in titles), *(f"ours: {title}" for title in titles)]
    return _paper()[f"table{number}"], columns, both


def _on_val(report: Report | None, columns: Sequence[tuple[_Group, str]]) -> list[str]:
    if report is None:
        return [NOT_RUN] * len(columns)
    return [_measured_cell([report], replace(group, split="val"), m) for group, m in columns]


def read_report(path: Path) -> Report:
    """A `report.json`, or that of a run's folder; DataError when it is none."""
    path = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is no report; make one with medisee bench score") from error
    if not isinstance(report, dict) or not {"split", "kinds", "length"} <= report.keys():
        raise DataError(f"{path}: is no report of this version; make one with medisee bench score")
    return report


def _paper() -> dict[str, Any]:
    text = resources.files("medisee.evaluation").joinpath("paper.json").read_text(encoding="utf-8")
    return json.loads(text)


def _published(rows: Any) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Name and figures of each row; table 6 has its rows in parts."""
    if isinstance(rows, dict):
        for part, settings in rows.items():
            for row in settings:
                yield f"{part.replace('_', ' ')}: {row['setting']}", row
        return
    for row in rows:
        yield _row_name(row), row


def _row_name(row: Mapping[str, Any]) -> str:
    if "system" in row:
        return row["system"] + (" (true box)" if row.get("input") == "true box" else "")
    if "prompts" in row:
        return "+".join(row["prompts"])
    hidden = row["router_hidden"]
    return f"{row['candidates']} {row['fusion']}" + (f" {hidden}" if hidden else "")


def _stated(reports: Sequence[Report]) -> str | None:
    return next((str(r["about"]["readiness"]) for r in reports if "readiness" in r["about"]), None)


def _published_cell(row: Mapping[str, Any] | None, group: _Group, metric: str) -> str:
    figures = (row or {}).get(group.key, {}) if group.key else (row or {})
    value = figures.get(metric)
    return "-" if value is None else f"{value:.1f}"


def _measured_cell(reports: Sequence[Report], group: _Group, metric: str) -> str:
    for report in reports:
        if figure := group.figures(report).get(_METRICS[metric][0]):
            low, high = 100 * figure["low"], 100 * figure["high"]
            return f"{100 * figure['value']:.1f} ({low:.1f}-{high:.1f})"
    return "-"


def _latex(text: str) -> str:
    for char in "&%_#":
        text = text.replace(char, f"\\{char}")
    return text
