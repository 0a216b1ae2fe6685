"""What plain scores do not tell: does it look, does wording matter, does it know when not to.

A probe is a question-answer set that the data engine's offline writer makes from a split, with each
question in several variants (and, where the image is varied, a small data set beside it). It is
asked and scored like any other; `summarise` sets the variants side by side. Nothing but the
variant differs from the question that it was made of, so agreement between the two is measured
without any truth.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as coco

from medisee.data.mlmr_sd import write_records
from medisee.data.sa_med2d import ImageRecord, Index
from medisee.engine import compose_records, referring_question
from medisee.entities import load_entities
from medisee.errors import DataError
from medisee.evaluation.metrics import Interval, bootstrap_interval
from medisee.evaluation.predictions import Prediction, read_lines
from medisee.evaluation.report import Report, Row
from medisee.structures import QARecord, QATarget, RefusalReason

__all__ = ["PROBES", "Probe", "ProbeRow", "make_probe", "summarise"]

SPLIT = "probe"
ORIGINAL = "as it is"
_MARK = "|"  # between a question's number and its variant, in the ids

Variant = tuple[str, QARecord]


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
    made = _Workshop(index, split, folder / "data", random.Random(f"{seed}|{name}"))
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


# ---- the probes ----------------------------------------------------------------------------------


class _Workshop:
    """Where varied images are made: a data set of its own, with the images that probes use."""

    def __init__(self, index: Index, split: str, root: Path, rng: random.Random) -> None:
        self.index, self.root, self.rng = index, root, rng
        self.records = {record.image: record for record in index.records(split)}
        self._lines: dict[str, dict[str, object]] = {}
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def keep(self, base: QARecord, question: str | None = None) -> QARecord:
        """The question about the image as it is; or other words about it."""
        pixels = self.index.load_image(base.image)
        return self.about(base, pixels, Path(base.image).stem, question)

    def about(
        self, base: QARecord, pixels: NDArray[np.uint8], stem: str, question: str | None = None
    ) -> QARecord:
        """The question about these pixels; the targets stay where they are."""
        image = f"images/{stem}.png"
        if image not in self._lines:
            Image.fromarray(pixels).save(self.root / image)
            of = self.records[base.image]
            self._lines[image] = {
                "image": image, "modality": of.modality, "body_part": of.body_part,
                "split": SPLIT, "patient": of.patient, "masks": [],
            }  # fmt: skip
        targets = [self._target(target, image) for target in base.targets]
        changes: dict[str, object] = {
            "image": image,
            "targets": targets,
            "split": SPLIT,
            "label": None,
            "box": None,
        }
        changed = {**base.model_dump(by_alias=True), **changes}
        return QARecord.model_validate({**changed, "question": question or base.question})

    def union(self, base: QARecord) -> NDArray[np.bool_]:
        """(H, W) bool: all targets."""
        return self.index.load_union([file for target in base.targets for file in target.masks])

    def _target(self, target: QATarget, image: str) -> QATarget:
        """The target as one mask file of the data set of the probe."""
        file = f"masks/{Path(image).stem}--{target.label.replace('/', '_')}.png"
        if not (self.root / file).exists():
            mask = self.index.load_union(target.masks)
            Image.fromarray(mask.astype(np.uint8) * 255).save(self.root / file)
        masks = self._lines[image]["masks"]
        entry = {"file": file, "label": target.label}
        if isinstance(masks, list) and entry not in masks:
            masks.append(entry)
        return target.model_copy(update={"masks": [file]})

    def write_index(self) -> None:
        """The data set's index; written last."""
        text = "".join(json.dumps(line) + "\n" for line in self._lines.values())
        (self.root / "index.jsonl").write_text(text, encoding="utf-8")


def _look(made: _Workshop, base: QARecord) -> Iterator[Variant]:
    """The target erased, as much erased elsewhere, noise, another patient's image."""
    pixels, target = made.index.load_image(base.image), made.union(base)
    stem = f"{Path(base.image).stem}-{base.id}"
    elsewhere = _moved(target, made.rng)
    yield ORIGINAL, made.keep(base)
    yield "target erased", made.about(base, erase(pixels, target, made.rng), f"{stem}-erased")
    if elsewhere is not None:
        other = erase(pixels, elsewhere, made.rng)
        yield "equal area elsewhere erased", made.about(base, other, f"{stem}-elsewhere")
    yield (
        "noise with the same grey values",
        made.about(base, _noise(pixels, made.rng), f"{stem}-noise"),
    )
    if (record := _other_patient(made, base)) is not None:
        absent = _absent(base, record.image, RefusalReason.NOT_IN_VIEW)
        yield "another patient's image without it", made.keep(absent)


def erase(
    pixels: NDArray[np.uint8], mask: NDArray[np.bool_], rng: random.Random
) -> NDArray[np.uint8]:
    """(H, W, 3) with the mask's pixels replaced by ones drawn from a ring around it."""
    grown = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(13))
    ring = (np.asarray(grown) > 0) & ~mask
    around = pixels[ring] if ring.any() else pixels.reshape(-1, 3)
    drawn = np.random.default_rng(rng.getrandbits(32)).integers(0, len(around), int(mask.sum()))
    filled = pixels.copy()
    filled[mask] = around[drawn]
    return filled


def _moved(mask: NDArray[np.bool_], rng: random.Random) -> NDArray[np.bool_] | None:
    """The mask's shape at a place that it does not touch, within the image; None without any."""
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    down = range(-rows.min(), height - rows.max())
    right = range(-columns.min(), width - columns.max())
    for _ in range(200):
        y, x = rng.choice(down), rng.choice(right)
        if not mask[rows + y, columns + x].any():
            moved = np.zeros_like(mask)
            moved[rows + y, columns + x] = True
            return moved
    return None


def _noise(pixels: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """The image's pixels in random order."""
    flat = pixels.reshape(-1, 3)
    order = np.random.default_rng(rng.getrandbits(32)).permutation(len(flat))
    return flat[order].reshape(pixels.shape)


def _other_patient(made: _Workshop, base: QARecord) -> ImageRecord | None:
    """An image of the same kind and body part, of somebody else, without the targets."""
    of, labels = made.records[base.image], {target.label for target in base.targets}
    fitting = [
        record
        for record in made.records.values()
        if (record.modality, record.body_part) == (of.modality, of.body_part)
        and record.patient != of.patient
        and not labels & set(record.labels)
    ]
    return made.rng.choice(fitting) if fitting else None


def _absent(base: QARecord, image: str, reason: RefusalReason) -> QARecord:
    changes: dict[str, object] = {
        "kind": "absent",
        "targets": [],
        "label": None,
        "box": None,
        "refusal": reason,
    }
    fields = {**base.model_dump(by_alias=True), **changes, "image": image}
    return QARecord.model_validate(fields)


def _wording(made: _Workshop, base: QARecord) -> Iterator[Variant]:
    """The same question in other words, misspelt, out of order, in other tones, under pressure."""
    yield ORIGINAL, made.keep(base)
    entity, question = load_entities()[base.targets[0].label], base.question
    lower = question[0].lower() + question[1:]
    if base.kind == "referring":
        others = [referring_question(made.records[base.image], entity, made.rng) for _ in range(8)]
    else:
        others = list(entity.questions)
    if fitting := [other for other in others if other != question]:
        yield "paraphrase", made.keep(base, made.rng.choice(fitting))
    yield "typos", made.keep(base, _misspelt(question, made.rng))
    yield "words in another order", made.keep(base, _reordered(question, made.rng))
    yield "casual", made.keep(base, f"hey, quick one: {question.lower().rstrip('.?!')} thx")
    yield "formal", made.keep(base, f"For the record of this examination, please answer: {lower}")
    others = [e.name for e in load_entities().values() if e.kind == entity.kind and e != entity]
    if others:
        told = f"My doctor said it is the {made.rng.choice(others)}. {question}"
        yield "pressure: somebody named another structure", made.keep(base, told)


def _misspelt(text: str, rng: random.Random) -> str:
    """Two neighbouring letters swapped inside every third word of at least four letters."""
    words = text.split(" ")
    long = [n for n, word in enumerate(words) if len(word.strip(".,?!")) >= 4]
    for n in rng.sample(long, (len(long) + 2) // 3):
        place = rng.randrange(1, len(words[n].strip(".,?!")) - 2)
        word = words[n]
        words[n] = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return " ".join(words)


def _reordered(text: str, rng: random.Random) -> str:
    words = text.rstrip(".?!").split()
    rng.shuffle(words)
    return " ".join(words) + "?"


def _refusal(made: _Workshop, base: QARecord) -> Iterator[Variant]:
    """What is not there, what cannot be shown, nonsense, and pictures that are not medical."""
    if base.kind != "absent":
        yield "present (control)", made.keep(base)
        drawn = drawing(made.rng)
        absent = _absent(base, base.image, RefusalReason.NOT_MEDICAL)
        yield "a picture that is not medical", made.about(absent, drawn, f"drawing-{base.id}")
    elif base.refusal is not None:
        yield base.refusal.value.replace("_", " "), made.keep(base)


def drawing(rng: random.Random, side: int = 256) -> NDArray[np.uint8]:
    """(256, 256, 3): a house under the sun, as a child might draw it; colours by chance."""
    picture = Image.new("RGB", (side, side), (130, 190, 240))
    draw, colour = ImageDraw.Draw(picture), lambda: tuple(rng.randrange(30, 220) for _ in range(3))
    ground, left = rng.randrange(150, 200), rng.randrange(20, 90)
    draw.rectangle((0, ground, side, side), fill=(70, 150, 70))
    draw.rectangle((left, ground - 70, left + 110, ground + 20), fill=colour())
    draw.polygon(
        [(left - 12, ground - 70), (left + 55, ground - 130), (left + 122, ground - 70)],
        fill=colour(),
    )
    draw.rectangle((left + 40, ground - 25, left + 65, ground + 20), fill=colour())
    draw.ellipse((190, 15, 235, 60), fill=(250, 220, 60))
    return np.asarray(picture)


def _rounds(made: _Workshop, base: QARecord) -> Iterator[Variant]:
    """Several targets at once, each alone; a question that refers back, and the same at once."""
    if base.kind == "several":
        yield f"{len(base.targets)} targets at once", made.keep(base)
        for target in base.targets[:2]:
            yield "one of them by name", made.keep(_alone(base, target))
    else:
        yield "refers back to an earlier round", made.keep(base)
        yield "its target by name, first round", made.keep(_alone(base, base.targets[0]))


def _alone(base: QARecord, target: QATarget) -> QARecord:
    changes = {
        "kind": "referring", "targets": [target.model_dump()], "label": None, "box": None,
        "history": [], "question": f"Segment the {target.label}.",
    }  # fmt: skip
    return QARecord.model_validate({**base.model_dump(by_alias=True), **changes})


PROBES: Mapping[
    str,
    tuple[str, Mapping[str, float], Callable[[_Workshop, QARecord], Iterable[Variant]]],
] = {
    "look": ("Does it look?", {"referring": 0.5, "implicit": 0.5}, _look),
    "wording": ("Does wording matter?", {"referring": 0.5, "implicit": 0.5}, _wording),
    "refusal": ("Does it know when not to?", {"absent": 0.6, "referring": 0.4}, _refusal),
    "rounds": ("Rounds and several targets.", {"several": 0.5, "round": 0.5}, _rounds),
}
"""Name -> what it asks, the kinds of question that it starts from, and how it varies them."""


def _id(number: int | str, variant: str, place: int) -> str:
    """Of a question's variant; the original comes first."""
    return _MARK.join((str(number), variant, str(place)))


def _cell(figure: Interval | None) -> str:
    if figure is None:
        return "-"
    return f"{100 * figure.value:.1f} ({100 * figure.low:.1f}-{100 * figure.high:.1f})"
