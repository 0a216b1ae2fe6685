"""What plain scores do not tell: does it look, does wording matter, does it know when not to.

A probe is a question-answer set that the data engine's offline writer makes from a split, with each
question in several variants (and, where the image is varied, a small data set beside it). It is
asked and scored like any other; `summarise` sets the variants side by side. Nothing but the
variant differs from the question that it was made of, so agreement between the two is measured
without any truth.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pycocotools import mask as coco

from medisee.data.mlmr_sd import write_records
from medisee.data.sa_med2d import Index
from medisee.engine import compose_records
from medisee.entities import load_entities
from medisee.errors import DataError
from medisee.evaluation.metrics import Interval, bootstrap_interval
from medisee.evaluation.predictions import Prediction, read_lines
from medisee.evaluation.probes.variants import ORIGINAL, PROBES, SPLIT, Workshop
from medisee.evaluation.report import Report, Row

__all__ = ["ORIGINAL", "PROBES", "SPLIT", "Probe", "ProbeRow", "make_probe", "summarise"]

_MARK = "|"  # between a question's number and its variant, in the ids


@dataclass(frozen=True)
class ProbeRow:
    """One variant: how many were answered, how well, and how alike its original's answer.

    answered, dice: as in reports (dice of the variants that still have a target); agreement: Dice
    of the masks with those for the original; reason: share refused for the right reason;
    disagree: answers whose mask and words contradict each other.
    """

    variant: str
    n: int
    answered: Interval
    dice: Interval | None
    agreement: Interval | None
    reason: Interval | None
    disagree: int


@dataclass(frozen=True)
class Probe:
    """The outcome of one probe of one system."""

    name: str
    question: str
    model: str
    rows: Sequence[ProbeRow]

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return asdict(self)

    def to_markdown(self) -> str:
        """One table, in per cent with 95 % intervals."""
        head = ["variant", "n", "answered", "Dice", "agreement with the original",
                "refused for the right reason", "mask and words disagree"]  # fmt: skip
        lines = [f"# {self.question} {self.model}", ""]
        lines += [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
        for row in self.rows:
            figures = (row.answered, row.dice, row.agreement, row.reason)
            cells = [row.variant, str(row.n), *map(_cell, figures), str(row.disagree)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*lines, ""])


def make_probe(
    name: str, index: Index, split: str, count: int, seed: int, folder: Path
) -> tuple[Index, Path]:
    """Writes a probe's questions (and images, where they are its own) into `folder`.

    count: questions before their variants. Gives the data set and the question-answer set to ask;
    its split is `SPLIT`. Raises DataError for another name, and for a split without questions.
    """
    if name not in PROBES:
        raise DataError(f"there is no probe {name!r}; there are {', '.join(PROBES)}")
    _, mix, vary = PROBES[name]
    records = list(compose_records(index, load_entities(), split, count, seed, mix))[:count]
    made = Workshop(index, split, folder / "data", random.Random(f"{seed}|{name}"))
    variants = [
        record.model_copy(update={"id": _id(number, variant, place)})
        for number, base in enumerate(records)
        for place, (variant, record) in enumerate(vary(made, base))
    ]
    if not variants:
        raise DataError(f"nothing can be asked of the split '{split}' for this probe")
    made.write_index()
    write_records(folder / "questions.jsonl", variants)
    return Index.open(folder / "data"), folder / "questions.jsonl"


def summarise(name: str, report: Report, predictions: Path) -> Probe:
    """Variants side by side, in the order in which they first came."""
    answers = {line["id"]: line for _, line in read_lines(predictions) if line is not None}
    rows: dict[str, list[Row]] = defaultdict(list)
    order = sorted(report.rows, key=lambda row: int(row.pair.id.split(_MARK)[0]))
    for row in order:
        rows[row.pair.id.split(_MARK)[1]].append(row)
    found = [_summary(variant, of, answers) for variant, of in rows.items()]
    return Probe(name, PROBES[name][0], report.model, found)


def _summary(variant: str, rows: Sequence[Row], answers: Mapping[str, Prediction]) -> ProbeRow:
    numbers = [row.pair.id.split(_MARK)[0] for row in rows]
    lines = [answers[row.pair.id] for row in rows]
    present = [(n, row) for n, row in zip(numbers, rows, strict=True) if row.pair.labels]
    originals = [answers.get(_id(n, ORIGINAL, 0)) for n in numbers]
    alike = [
        (n, _alike(line, original))
        for n, line, original, row in zip(numbers, lines, originals, rows, strict=True)
        if original is not None and variant != ORIGINAL and row.pair.reason is None
    ]
    right = [
        (n, line["refusal"] == row.pair.reason.value)
        for n, line, row in zip(numbers, lines, rows, strict=True)
        if row.pair.reason is not None
    ]
    return ProbeRow(
        variant=variant,
        n=len(rows),
        answered=bootstrap_interval([not row.refused for row in rows], numbers),
        dice=_interval([(n, row.overlap.dice) for n, row in present]),
        agreement=_interval(alike),
        reason=_interval(right),
        disagree=sum(map(_disagrees, lines)),
    )


def _interval(values: Sequence[tuple[str, float]]) -> Interval | None:
    if not values:
        return None
    clusters, numbers = zip(*values, strict=True)
    return bootstrap_interval(numbers, clusters)


def _alike(first: Prediction, second: Prediction) -> float:
    """Dice of two answers' masks: 1 when both found nothing, 0 where the sizes differ."""
    unions = []
    for answer in (first, second):
        runs = [{**f["mask"], "counts": f["mask"]["counts"].encode()} for f in answer["findings"]]
        unions.append(coco.merge(runs) if runs else None)
    a, b = unions
    if a is None or b is None or a["size"] != b["size"]:
        return float(a is None and b is None)
    total = int(coco.area(a)) + int(coco.area(b))
    return 2 * int(coco.area(coco.merge([a, b], intersect=True))) / total if total else 1.0


def _disagrees(answer: Prediction) -> bool:
    """A refusal with a mask, or an answer without either, or words that refuse beside a mask."""
    return (answer["refusal"] is None) != bool(answer["findings"])


def _id(number: int | str, variant: str, place: int) -> str:
    """Of a question's variant; the original comes first."""
    return _MARK.join((str(number), variant, str(place)))


def _cell(figure: Interval | None) -> str:
    if figure is None:
        return "-"
    return f"{100 * figure.value:.1f} ({100 * figure.low:.1f}-{100 * figure.high:.1f})"
