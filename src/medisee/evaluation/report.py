"""Figures of one system on one split, made of one row per question: tables with intervals."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medisee.evaluation.metrics import (
    PRINTED,
    Interval,
    Overlap,
    RiskCoverage,
    bootstrap_intervals,
    expected_calibration_error,
    refusal_rates,
    risk_coverage,
)
from medisee.evaluation.pairs import Pair

__all__ = ["SURFACE", "Report", "Row", "columns"]

Figures = Mapping[str, Interval]

SURFACE = {"surface_dice": "NSD"}
"""The figure that is there on request, and what tables call it."""

FIELDS = ("category", "modality", "style", "length", "perspective")
"""Fields of the pairs by which figures are told apart."""


@dataclass(frozen=True)
class Row:
    """How one pair went.

    overlap: of the union of the findings with the union of the targets (an absent pair has no
    target); box_iou: of the boxes around them; named: does the answer's text name every label;
    score: of the only finding, else None; findings: how many there were; seconds: to answer;
    memory: peak of the process in MB; surface: normalised surface distance, where it was asked for.
    """

    pair: Pair
    overlap: Overlap
    box_iou: float
    named: bool
    refused: bool
    score: float | None
    findings: int
    seconds: float | None = None
    memory: float | None = None
    surface: float | None = None


@dataclass(frozen=True)
class Report:
    """All rows of one system on one split, and the tables made of them.

    about: what else is known of the system (key, readiness, settings).
    """

    model: str
    split: str
    rows: Sequence[Row]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str]:
        """The kinds of question that have targets, in the order of the rows."""
        return list(dict.fromkeys(row.pair.kind for row in self.rows if row.pair.labels))

    def of_kind(self, kind: str) -> list[Row]:
        """The rows of a kind that have targets."""
        return [row for row in self.rows if row.pair.kind == kind and row.pair.labels]

    def figures(self, kind: str) -> Figures:
        """Every figure of the rows of a kind that has targets; empty when there is no such row."""
        return self._groups(None, kind).get("", {})

    def by(self, field: str, kind: str) -> dict[str, Figures]:
        """The figures of a kind for each value of a field of the pairs, e.g. `category`."""
        return self._groups(field, kind)

    def _groups(self, field: str | None, kind: str) -> dict[str, Figures]:
        """Figures by the values of a field, or all under ""; made once, for several tables."""
        if (field, kind) not in self._made:
            if kind not in self._columns:
                self._columns[kind] = _Columns.of(self.of_kind(kind))
            self._made[field, kind] = self._columns[kind].by(field)
        return self._made[field, kind]

    @cached_property
    def _made(self) -> dict[tuple[str | None, str], dict[str, Figures]]:
        return {}

    @cached_property
    def _columns(self) -> dict[str, _Columns]:
        return {}

    def refusal(self) -> dict[str, float | None]:
        """N_acc, T_acc, MCC over all rows, and the share refused for each reason."""
        absent = [row.pair.kind == "absent" for row in self.rows]
        rates = refusal_rates([row.refused for row in self.rows], absent)
        found: dict[str, float | None] = {
            "n_acc": rates.n_acc,
            "t_acc": rates.t_acc,
            "mcc": rates.mcc,
        }
        reasons: dict[str, list[bool]] = defaultdict(list)
        for row in self.rows:
            if row.pair.kind == "absent":
                reasons[row.pair.category].append(row.refused)
        return found | {reason: float(np.mean(seen)) for reason, seen in sorted(reasons.items())}

    def calibration(self) -> float | None:
        """ECE of the scores of single findings against IoU > 0.5; None without such findings."""
        scores, correct = self._scored()
        return expected_calibration_error(scores, correct) if scores else None

    def risk_coverage(self) -> RiskCoverage | None:
        """Of the scores of single findings, wrong being IoU <= 0.5; None without such findings."""
        scores, correct = self._scored()
        return risk_coverage(scores, correct) if scores else None

    def _scored(self) -> tuple[list[float], list[bool]]:
        scored = [(row, row.score) for row in self.rows if row.score is not None]
        correct = [row.overlap.iou > 0.5 and bool(row.pair.labels) for row, _ in scored]
        return [score for _, score in scored], correct

    def cost(self) -> dict[str, float | None]:
        """Mean and 95th percentile of the seconds a question took, and the peak memory in MB."""
        seconds = [row.seconds for row in self.rows if row.seconds is not None]
        memory = [row.memory for row in self.rows if row.memory is not None]
        return {
            "seconds_mean": float(np.mean(seconds)) if seconds else None,
            "seconds_p95": float(np.percentile(seconds, 95)) if seconds else None,
            "memory_mb": max(memory, default=None),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: every table, and one line per pair."""
        return {
            "model": self.model,
            "about": dict(self.about),
            "split": self.split,
            "pairs": len(self.rows),
            "images": len({row.pair.image for row in self.rows}),
            "kinds": {kind: _plain(self.figures(kind)) for kind in self.kinds},
            **{
                field: {
                    kind: {value: _plain(f) for value, f in self.by(field, kind).items()}
                    for kind in self.kinds
                }
                for field in FIELDS
            },
            "refusal": self.refusal(),
            "ece": self.calibration(),
            "risk_coverage": _curve(self.risk_coverage()),
            "cost": self.cost(),
            "rows": [_row_dict(row) for row in self.rows],
        }

    def to_markdown(self) -> str:
        """The tables that a person reads first, in per cent with 95 % intervals."""
        per_kind = {kind: self.figures(kind) for kind in self.kinds}
        lines = [f"# {self.model} on {self.split}", "", *_about(self), *_table("kind", per_kind)]
        for kind in self.kinds:
            for name in ("length", "perspective", "modality", "category"):
                if groups := self.by(name, kind):
                    lines += ["", f"## {kind} by {name}", "", *_table(name, groups)]
        rates = {name: "-" if r is None else f"{100 * r:.1f}" for name, r in self.refusal().items()}
        lines += ["", "## Refusal", "", f"| {' | '.join(rates)} |", "| --- " * len(rates) + "|"]
        lines += [f"| {' | '.join(rates.values())} |", "", "## Score and cost", ""]
        return "\n".join([*lines, *_score_and_cost(self), ""])

    def save(self, folder: str | Path) -> list[Path]:
        """Writes `report.json` and `report.md` into the folder and gives their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            "report.json": json.dumps(self.to_dict(), indent=1) + "\n",
            "report.md": self.to_markdown(),
        }
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        return [folder / name for name in texts]


def columns(
    rows: Sequence[Row],
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Numerators and denominators (N,) of every figure; a mean's denominators are ones."""
    overlaps = [row.overlap for row in rows]
    tops: dict[str, Sequence[float]] = {
        "dice": [overlap.dice for overlap in overlaps],
        "mean_iou": [overlap.iou for overlap in overlaps],
        "box_iou": [row.box_iou for row in rows],
        "accuracy_at_0.5": [row.box_iou > 0.5 for row in rows],
        "named": [row.named for row in rows],
        "answered": [not row.refused for row in rows],
        "cumulative_iou": [overlap.intersection for overlap in overlaps],
    }
    surfaces = [row.surface for row in rows if row.surface is not None]
    if rows and len(surfaces) == len(rows):
        tops["surface_dice"] = surfaces
    arrays = {name: np.asarray(values, dtype=float) for name, values in tops.items()}
    belows = {name: np.ones(len(rows)) for name in arrays}
    belows["cumulative_iou"] = np.array([overlap.union for overlap in overlaps], dtype=float)
    return arrays, belows


@dataclass(frozen=True)
class _Columns:
    """The rows of a kind as arrays: M figures (N, M), and the number (N,) of each row's image."""

    rows: Sequence[Row]
    names: Sequence[str]
    tops: NDArray[np.float64]
    belows: NDArray[np.float64]
    images: NDArray[np.intp]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> _Columns:
        """From the rows."""
        tops, belows = columns(rows)
        known: dict[str, int] = {}
        images = [known.setdefault(row.pair.image, len(known)) for row in rows]
        above, under = (np.stack(list(each.values()), axis=1) for each in (tops, belows))
        return cls(rows, list(tops), above, under, np.array(images, dtype=np.intp))

    def by(self, field: str | None) -> dict[str, Figures]:
        """The figures of the rows with each value of a field of their pair, where it is told."""
        groups: dict[str, list[int]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            value = "" if field is None else getattr(row.pair, field)
            if value is not None:
                groups[str(value)].append(number)
        return {value: self._figures(groups[value]) for value in sorted(groups)}

    def _figures(self, of: list[int]) -> Figures:
        found = bootstrap_intervals(self.tops[of], self.images[of], self.belows[of])
        return dict(zip(self.names, found, strict=True))


def _curve(found: RiskCoverage | None, points: int = 101) -> dict[str, Any] | None:
    """The area and at most so many points of the curve."""
    if found is None:
        return None
    kept = np.unique(np.linspace(0, len(found.risk) - 1, points).round().astype(int))
    pairs = zip(found.coverage[kept], found.risk[kept], strict=True)
    return {
        "area": found.area,
        "curve": [[round(float(c), 4), round(float(r), 4)] for c, r in pairs],
    }


def _about(report: Report) -> list[str]:
    known = {name: value for name, value in report.about.items() if value not in (None, "", {})}
    return [f"{name}: {value}  " for name, value in known.items()] + [""] * bool(known)


def _score_and_cost(report: Report) -> list[str]:
    curve, cost = report.risk_coverage(), report.cost()
    values = {
        "expected calibration error": _per_cent(report.calibration()),
        "area under risk-coverage": _per_cent(None if curve is None else curve.area),
        "seconds a question": _number(cost["seconds_mean"], 2),
        "slowest 5 %, seconds": _number(cost["seconds_p95"], 2),
        "peak memory, MB": _number(cost["memory_mb"], 0),
    }
    return [
        f"| {' | '.join(values)} |",
        "| --- " * len(values) + "|",
        f"| {' | '.join(values.values())} |",
    ]


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(first: str, rows: Mapping[str, Figures]) -> list[str]:
    asked = any(key in figures for figures in rows.values() for key in SURFACE)
    printed = PRINTED | (SURFACE if asked else {})
    head = [first, "n", *printed.values()]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, figures in rows.items():
        cells = [_cell(figures[key]) if key in figures else "-" for key in printed]
        lines.append(f"| {' | '.join([name, str(figures['dice'].n), *cells])} |")
    return lines


def _cell(figure: Interval) -> str:
    return f"{100 * figure.value:.1f} ({100 * figure.low:.1f}-{100 * figure.high:.1f})"


def _plain(figures: Figures) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in figures.items()}


def _row_dict(row: Row) -> dict[str, Any]:
    found = {
        "id": row.pair.id,
        "image": row.pair.image,
        "kind": row.pair.kind,
        "category": row.pair.category,
        "dice": round(row.overlap.dice, 4),
        "iou": round(row.overlap.iou, 4),
        "box_iou": round(row.box_iou, 4),
        "named": row.named,
        "refused": row.refused,
        "score": row.score,
        "findings": row.findings,
    }
    return found if row.surface is None else {**found, "surface_dice": round(row.surface, 4)}
