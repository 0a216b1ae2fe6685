"""Free-running evaluation of anything that answers questions about images.

`evaluate` asks, scores and writes the report; `predict` and `score` are its two halves, `score`
needs no model. A system is whatever follows the protocol: `open(image)` gives a session,
`ask(questions)` one answer each. Nothing is read from a reference answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medisee.data.sa_med2d import Index
from medisee.evaluation.comparing import Comparison, compare_systems, comparison_table
from medisee.evaluation.pairs import KINDS, Pair, Selection, make_pairs
from medisee.evaluation.parity import Parity, compare
from medisee.evaluation.predictions import Model, Session, predict
from medisee.evaluation.report import Report, Row
from medisee.evaluation.scoring import score

__all__ = [
    "KINDS",
    "PREDICTIONS",
    "Comparison",
    "Model",
    "Pair",
    "Parity",
    "Report",
    "Row",
    "Selection",
    "Session",
    "compare",
    "compare_systems",
    "comparison_table",
    "evaluate",
    "make_pairs",
    "predict",
    "score",
]

PREDICTIONS = "predictions.jsonl"
"""Name of the predictions in a run's folder."""


def evaluate(
    make: Callable[[], Model],
    index: Index,
    selection: Selection,
    out: str | Path = "evaluation",
    explain: bool = True,
    about: Mapping[str, Any] | None = None,
    workers: int = 1,
) -> Report:
    """Asks the system that `make` gives about a selection of the data set and scores its answers.

    `explain` False leaves the text out, and with it the figure `named`. The folder `out` takes
    predictions.jsonl, report.json and report.md; a run that was stopped goes on there. Raises
    DataError for bad data, questions, or an `out` of another system.
    """
    path = Path(out) / PREDICTIONS
    predict(make, index, selection, path, explain, about, workers)
    report = score(path, index, selection.questions)
    report.save(out)
    return report
