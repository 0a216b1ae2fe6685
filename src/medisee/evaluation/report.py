"""From predictions and masks to figures: one row per pair, then tables with intervals."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medisee.boxes import box_iou, mask_to_box
from medisee.data.sa_med2d import Index
from medisee.entities import Entities, load_entities
from medisee.errors import DataError
from medisee.evaluation.metrics import (
    PRINTED,
    Interval,
    Overlap,
    bootstrap_interval,
    expected_calibration_error,
    refusal_rates,
)
from medisee.evaluation.pairs import Pair
from medisee.evaluation.predictions import Prediction
from medisee.structures import decode_rle

__all__ = ["Report", "Row", "score"]

Figures = Mapping[str, Interval]


@dataclass(frozen=True)
class Row:
    """How one pair went.

    overlap: of the union of the findings with the union of the targets (an absent pair has no
    target); box_iou: of the boxes around them; named: does the answer's text name every label;
    score: of the only finding, else None; findings: how many there were.
    """

    pair: Pair
    overlap: Overlap
    box_iou: float
    named: bool
    refused: bool
    score: float | None
    findings: int


@dataclass(frozen=True)
class Report:
    """All rows of one system on one split, and the tables made of them."""

    model: str
    split: str
    rows: Sequence[Row]

    def figures(self, kind: str) -> Figures:
        """Every figure of the rows of a kind that has targets; empty when there is no such row."""
        rows = [row for row in self.rows if row.pair.kind == kind]
        return _figures(rows) if rows and kind != "absent" else {}

    def by(self, field: str, kind: str) -> dict[str, Figures]:
        """The figures of a kind for each value of a field of the pairs, e.g. `category`."""
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            if row.pair.kind == kind and kind != "absent":
                groups[getattr(row.pair, field)].append(row)
        return {value: _figures(groups[value]) for value in sorted(groups)}

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
        scored = [row for row in self.rows if row.score is not None]
        correct = [row.overlap.iou > 0.5 and row.pair.kind != "absent" for row in scored]
        scores = [row.score for row in scored if row.score is not None]
        return expected_calibration_error(scores, correct) if scored else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: every table, and one line per pair."""
        kinds = list(dict.fromkeys(row.pair.kind for row in self.rows))
        return {
            "model": self.model,
            "split": self.split,
            "pairs": len(self.rows),
            "images": len({row.pair.image for row in self.rows}),
            "kinds": {kind: _plain(self.figures(kind)) for kind in kinds if kind != "absent"},
            **{
                table: {
                    kind: {value: _plain(f) for value, f in self.by(table, kind).items()}
                    for kind in kinds
                    if kind != "absent"
                }
                for table in ("category", "modality", "style")
            },
            "refusal": self.refusal(),
            "ece": self.calibration(),
            "rows": [_row_dict(row) for row in self.rows],
        }

    def to_markdown(self) -> str:
        """The tables that a person reads first, in per cent with 95 % intervals."""
        kinds = list(dict.fromkeys(row.pair.kind for row in self.rows if row.pair.labels))
        lines = [f"# {self.model} on {self.split}", "", *_table("kind", _kinds(self, kinds))]
        for kind in kinds:
            for field in ("modality", "category"):
                lines += ["", f"## {kind} by {field}", "", *_table(field, self.by(field, kind))]
        rates = {name: "-" if r is None else f"{100 * r:.1f}" for name, r in self.refusal().items()}
        lines += ["", "## Refusal", "", f"| {' | '.join(rates)} |", "| --- " * len(rates) + "|"]
        return "\n".join([*lines, f"| {' | '.join(rates.values())} |", ""])

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


def score(
    model: str,
    split: str,
    index: Index,
    pairs: Sequence[Pair],
    predictions: Mapping[str, Prediction],
) -> Report:
    """Compares the predictions with the masks of the data set; no model is needed.

    Raises DataError when a pair has no prediction or a mask is of another size than its image.
    """
    missing = [pair.id for pair in pairs if pair.id not in predictions]
    if missing:
        raise DataError(f"{len(missing)} pairs have no prediction, the first is {missing[0]}")
    records = {record.image: record for record in index.records(split)}
    rows: list[Row] = []
    for image, group in groupby(pairs, key=lambda pair: pair.image):
        record = records[image]
        asked = list(group)
        labels = {label for pair in asked for label in pair.labels}
        masks = {label: index.load_mask(record, label) for label in labels}
        empty = np.zeros(index.load_image(record).shape[:2], dtype=bool)
        for pair in asked:
            true = np.logical_or.reduce([empty, *(masks[label] for label in pair.labels)])
            rows.append(_row(pair, predictions[pair.id], true, load_entities()))
    return Report(model, split, rows)


def _row(pair: Pair, prediction: Prediction, true: NDArray[np.bool_], entities: Entities) -> Row:
    findings = prediction["findings"]
    masks = [decode_rle(finding["mask"]) for finding in findings]
    if any(mask.shape != true.shape for mask in masks):
        raise DataError(f"{pair.id}: the predicted mask is of another size than the image")
    predicted = np.logical_or.reduce([np.zeros_like(true), *masks])
    named = {entity.name for entity in entities.find(prediction["text"])}
    return Row(
        pair=pair,
        overlap=Overlap.of(predicted, true),
        box_iou=_box_iou([finding["box"] for finding in findings], true),
        named=bool(pair.labels) and set(pair.labels) <= named,
        refused=prediction["refusal"] is not None or not findings,
        score=findings[0]["score"] if len(findings) == 1 else None,
        findings=len(findings),
    )


def _box_iou(boxes: Sequence[Sequence[float]], true: NDArray[np.bool_]) -> float:
    """IoU of the box around all boxes with the box around the truth; 0 when one is missing."""
    around = mask_to_box(true)
    if around is None or not boxes:
        return 0.0
    edges = np.asarray(boxes, dtype=float)
    union = np.concatenate([edges[:, :2].min(axis=0), edges[:, 2:].max(axis=0)])
    return float(box_iou(union[None], np.asarray(around)[None])[0, 0])


def _figures(rows: Sequence[Row]) -> Figures:
    images = [row.pair.image for row in rows]
    overlaps = [row.overlap for row in rows]
    means: dict[str, list[float]] = {
        "dice": [overlap.dice for overlap in overlaps],
        "mean_iou": [overlap.iou for overlap in overlaps],
        "box_iou": [row.box_iou for row in rows],
        "accuracy_at_0.5": [row.box_iou > 0.5 for row in rows],
        "named": [row.named for row in rows],
        "answered": [not row.refused for row in rows],
    }
    found = {name: bootstrap_interval(values, images) for name, values in means.items()}
    unions = [overlap.union for overlap in overlaps]
    tops = [overlap.intersection for overlap in overlaps]
    return found | {"cumulative_iou": bootstrap_interval(tops, images, unions)}


def _kinds(report: Report, kinds: Sequence[str]) -> dict[str, Figures]:
    return {kind: report.figures(kind) for kind in kinds}


def _table(first: str, rows: Mapping[str, Figures]) -> list[str]:
    head = [first, "n", *PRINTED.values()]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, figures in rows.items():
        cells = [_cell(figures[key]) for key in PRINTED]
        lines.append(f"| {' | '.join([name, str(figures['dice'].n), *cells])} |")
    return lines


def _cell(figure: Interval) -> str:
    return f"{100 * figure.value:.1f} ({100 * figure.low:.1f}-{100 * figure.high:.1f})"


def _plain(figures: Figures) -> dict[str, Any]:
    return {name: asdict(figure) for name, figure in figures.items()}


def _row_dict(row: Row) -> dict[str, Any]:
    return {
        "id": row.pair.id,
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
