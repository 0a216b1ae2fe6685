"""How each probe varies a question or its image."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from medisee.data.sa_med2d import ImageRecord, Index
from medisee.engine import referring_question
from medisee.entities import load_entities
from medisee.structures import QARecord, QATarget, RefusalReason

__all__ = ["ORIGINAL", "PROBES", "SPLIT", "Workshop", "erase"]

SPLIT = "probe"
ORIGINAL = "as it is"

Variant = tuple[str, QARecord]


class Workshop:
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


def _look(made: Workshop, base: QARecord) -> Iterator[Variant]:
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


def _other_patient(made: Workshop, base: QARecord) -> ImageRecord | None:
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


def _wording(made: Workshop, base: QARecord) -> Iterator[Variant]:
    """The same question in other words, tones and languages, misspelt, under pressure."""
    yield ORIGINAL, made.keep(base)
    question = base.question
    if fitting := [other for other in _paraphrases(made, base) if other != question]:
        yield "paraphrase", made.keep(base, made.rng.choice(fitting))
    yield "typos", made.keep(base, _misspelt(question, made.rng))
    yield "words in another order", made.keep(base, _reordered(question, made.rng))
    yield "casual", made.keep(base, f"hey, quick one: {question.lower().rstrip('.?!')} thx")
    lower = question[0].lower() + question[1:]
    yield "formal", made.keep(base, f"For the record of this examination, please answer: {lower}")
    yield from _under_pressure(made, base)
    if base.kind == "referring":
        for language, asked in _translations(base.targets[0].label):
            yield f"in {language}", made.keep(base, asked)


def _paraphrases(made: Workshop, base: QARecord) -> list[str]:
    entity = load_entities()[base.targets[0].label]
    if base.kind == "referring":
        return [referring_question(made.records[base.image], entity, made.rng) for _ in range(8)]
    return list(entity.questions)


def _under_pressure(made: Workshop, base: QARecord) -> Iterator[Variant]:
    entity = load_entities()[base.targets[0].label]
    others = [e.name for e in load_entities().values() if e.kind == entity.kind and e != entity]
    if others:
        told = f"My doctor said it is the {made.rng.choice(others)}. {base.question}"
        yield "pressure: somebody named another structure", made.keep(base, told)


def _translations(label: str) -> Iterator[tuple[str, str]]:
    """The request for a category by its name, in each language that has a name for it."""
    for language, words in _languages().items():
        if label in words["names"]:
            yield language, words["ask"].format(words["names"][label])


@cache
def _languages() -> dict[str, Any]:
    text = files(__package__).joinpath("languages.yaml").read_text(encoding="utf-8")
    languages: dict[str, Any] = yaml.safe_load(text)
    return languages


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


def _refusal(made: Workshop, base: QARecord) -> Iterator[Variant]:
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


def _rounds(made: Workshop, base: QARecord) -> Iterator[Variant]:
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
    tuple[str, Mapping[str, float], Callable[[Workshop, QARecord], Iterable[Variant]]],
] = {
    "look": ("Does it look?", {"referring": 0.5, "implicit": 0.5}, _look),
    "wording": ("Does wording matter?", {"referring": 0.5, "implicit": 0.5}, _wording),
    "refusal": ("Does it know when not to?", {"absent": 0.6, "referring": 0.4}, _refusal),
    "rounds": ("Rounds and several targets.", {"several": 0.5, "round": 0.5}, _rounds),
}
"""Name -> what it asks, the kinds of question that it starts from, and how it varies them."""
