"""How long scoring takes: many predictions on one data set, no model.

    python benchmarks/scoring.py DATA [--predictions 200000] [--split test]

Asks every label by name on every image of the split, again and again under other ids, answers with
the true masks moved a little, and times `score` on that file. Nothing is read from a model.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from medisee.boxes import mask_to_box
from medisee.data.mlmr_sd import write_records
from medisee.data.sa_med2d import ImageRecord, Index
from medisee.evaluation import Selection, score
from medisee.evaluation.predictions import FORMAT
from medisee.structures import QARecord, QATarget, encode_rle


def main() -> None:
    """Writes the questions and the answers, then scores them once."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--predictions", type=int, default=200_000)
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()
    index = Index.open(arguments.data)
    with tempfile.TemporaryDirectory() as place:
        questions, answers = Path(place) / "questions.jsonl", Path(place) / "predictions.jsonl"
        prepare(index, arguments.split, arguments.predictions, questions, answers)
        size = answers.stat().st_size
        started, busy = time.perf_counter(), time.process_time()
        report = score(answers, index, questions)
        print(f"{len(report.rows):,} predictions, {size / 1e6:.0f} MB")
        print(f"scored in {_since(started, busy)}")
        report.save(place)
        print(f"with all tables and intervals {_since(started, busy)}")


def _since(started: float, busy: float) -> str:
    wall, processor = time.perf_counter() - started, time.process_time() - busy
    return f"{wall:.1f} s ({processor:.1f} s of one processor)"


def prepare(index: Index, split: str, count: int, questions: Path, answers: Path) -> None:
    """A question-answer set of `count` records, and a predictions file that answers it."""
    targets = [(record, label) for record in index.records(split) for label in record.labels]
    made = [answered(index, record, label) for record, label in targets]
    order = [n % len(targets) for n in range(count)]
    records = (question(*targets[of], made[of][1], n) for n, of in enumerate(order))
    write_records(questions, records)
    selection = Selection(split, questions, None)
    header = {"format": FORMAT, "model": "moved truth", "weights": None, "explain": True,
              "asked": selection.to_dict(), "about": {}}  # fmt: skip
    with answers.open("w", encoding="utf-8") as out:
        out.write(json.dumps(header) + "\n")
        for n, of in enumerate(order):
            text = f"This is the {targets[of][1]}, seen {n} times; a sentence that differs."
            finding = {"score": random.Random(n).random(), **made[of][0]}
            line = {"id": str(n), "text": text, "refusal": None, "findings": [finding]}
            out.write(json.dumps(line) + "\n")


def answered(
    index: Index, record: ImageRecord, label: str
) -> tuple[dict[str, object], tuple[float, float, float, float]]:
    """The true mask moved by a few pixels, and the true box."""
    true = index.load_mask(record, label)
    moved = np.roll(true, (3, -2), axis=(0, 1))
    box, around = mask_to_box(moved), mask_to_box(true)
    return {"box": list(box or (0, 0, 0, 0)), "mask": encode_rle(moved)}, around or (0, 0, 1, 1)


def question(
    record: ImageRecord, label: str, box: tuple[float, float, float, float], number: int
) -> QARecord:
    """A record that asks for the label by name."""
    target = QATarget(label=label, masks=list(record.files(label)), box=box)
    return QARecord(
        id=str(number), image=record.image, kind="referring", targets=[target],
        modality=record.modality, length="short", question=f"Where is the {label}?",
        split=record.split,
    )  # fmt: skip


if __name__ == "__main__":
    main()
