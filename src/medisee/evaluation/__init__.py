"""Free-running evaluation of anything that answers questions about images.

`evaluate` asks, scores and writes the report; `score` needs predictions only. A system is
whatever follows the protocol: `open(image)` gives a session, `ask(questions)` one answer each.
Nothing is read from a reference answer.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from medisee.data.sa_med2d import Index
from medisee.evaluation.pairs import Pair, make_pairs
from medisee.evaluation.parity import Parity, compare
from medisee.evaluation.predictions import Model, Session, predict, read_predictions
from medisee.evaluation.report import Report, Row, score

__all__ = [
    "Model",
    "Pair",
    "Parity",
    "Report",
    "Row",
    "Session",
    "compare",
    "evaluate",
    "make_pairs",
    "predict",
    "read_predictions",
    "score",
]


def evaluate(
    model: Model,
    data: str | Path,
    split: str = "test",
    questions: str | Path | None = None,
    out: str | Path = "evaluation",
    limit: int | None = 4,
    kinds: Collection[str] | None = None,
    seed: int = 0,
    explain: bool = True,
) -> Report:
    """Asks `model` about a split of the data set in the folder `data` and scores its answers.

    Without a question file, every label of the split is asked for by name; a file of the public
    benchmark's format adds its implicit, referring, several-target and absent questions. `limit`:
    images per label or question, None for all. `kinds`: a selection of referring, implicit,
    several, absent. `explain` False leaves the text out, and with it the figure `named`.
    The folder `out` takes predictions.jsonl, report.json and report.md; a run that was stopped
    goes on there. Raises DataError for bad data, questions, or an `out` of another system.
    """
    index = Index.open(data)
    pairs = make_pairs(index, split, questions, limit, kinds, seed)
    path = Path(out) / "predictions.jsonl"
    predict(model, index, pairs, path, explain)
    report = score(model.name, split, index, pairs, read_predictions(path))
    report.save(out)
    return report
