"""Plain comparisons that keep everybody honest, behind the protocol of every other system.

Some are told the answer key's labels (they cannot read), never where the targets are, except
`true_box`, which is a ceiling: what a segmenter makes of the true box.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medisee.boxes import mask_to_box
from medisee.data.sa_med2d import Index
from medisee.entities import Entity, load_entities
from medisee.errors import DataError
from medisee.evaluation.systems import Setup
from medisee.evaluation.systems.common import (
    Box,
    BoxSegmenter,
    Found,
    Mask,
    OneByOne,
    filled_box,
)
from medisee.structures import Answer, MedicalImage

Labels = tuple[str, ...]
_GRID = 64


def centred_box(setup: Setup) -> OneByOne:
    """The same box for everything: centred, half as wide and half as high as the image."""

    def find(image: MedicalImage, labels: Labels) -> Found:
        return Found(box=_scaled((0.25, 0.25, 0.75, 0.75), image))

    return _told("centred box", setup, find)


def median_box(setup: Setup) -> OneByOne:
    """The median box of the category in the training images, relative to the image."""
    boxes = _median_boxes(setup.index, _labels(setup))

    def find(image: MedicalImage, labels: Labels) -> Found:
        known = [_scaled(boxes[label], image) for label in labels if label in boxes]
        if not known:
            return Found()
        masks = [filled_box(image, box) for box in known]
        return Found(np.logical_or.reduce(masks), _around(known))

    return _told("median box of the category", setup, find)


def category_mean(setup: Setup) -> OneByOne:
    """The mean training mask of the category, cut where it fits the training masks best."""
    masks = _training_masks(setup.index, _labels(setup))
    means = {label: _best_cut(small) for label, small in masks.items()}

    def find(image: MedicalImage, labels: Labels) -> Found:
        known = [
            _resized(means[label], image.height, image.width) for label in labels if label in means
        ]
        return Found(np.logical_or.reduce(known) if known else None)

    return _told("mean mask of the category", setup, find)


def true_box(setup: Setup, kind: str, segmenter: str) -> OneByOne:
    """A ceiling: the segmenter is given the true box of each target."""
    from medisee.evaluation.systems.boxed import load_box_segmenter

    return with_true_boxes(
        setup, load_box_segmenter(kind, Path(segmenter), setup.device), f"true box, {kind}"
    )


def with_true_boxes(setup: Setup, decode: BoxSegmenter, name: str = "true box") -> OneByOne:
    """The same for any segmenter that takes a box."""
    records = {Path(record.image).name: record for record in setup.index.records(setup.split)}

    def find(image: MedicalImage, labels: Labels) -> Found:
        masks = (setup.index.load_mask(records[image.source], label) for label in labels)
        boxes = [box for mask in masks if (box := mask_to_box(mask)) is not None]
        if not boxes:
            return Found()
        return Found(np.logical_or.reduce([decode(image, box) for box in boxes]), _around(boxes))

    return _told(name, setup, find)


def shuffled(setup: Setup, model: str) -> _Reworded:
    """The model asked the questions of other images: what it knows without the question."""
    questions = [pair.question for pair in setup.pairs]
    mixed = questions[:]
    random.Random(0).shuffle(mixed)
    return _Reworded(
        f"{model}, questions shuffled",
        _load(model, setup),
        dict(zip(questions, mixed, strict=True)),
    )


def retrieval(setup: Setup, model: str) -> _Reworded:
    """The entity whose knowledge is nearest to the question, then the model asked for it by name.

    Nearest by the cosine of TF-IDF vectors of words over each entity's descriptions and questions.
    """
    nearest = _Nearest(list(load_entities().values()))
    words = {pair.question: f"Segment the {nearest(pair.question).name}." for pair in setup.pairs}
    return _Reworded(f"retrieval, then {model} by name", _load(model, setup), words)


def _load(model: str, setup: Setup) -> Any:
    from medisee.predictor import load

    return load(model, setup.device)


@dataclass(frozen=True)
class _Reworded:
    """A model that is asked other words; answers still carry the question that was asked."""

    name: str
    model: Any
    words: Mapping[str, str]

    def open(self, image: MedicalImage) -> _RewordedSession:
        """A session of the model's."""
        return _RewordedSession(self.model.open(image), self.words)


@dataclass(frozen=True)
class _RewordedSession:
    session: Any
    words: Mapping[str, str]

    def ask(self, question: list[str], explain: bool = True) -> list[Answer]:
        """The model's answers to the other words."""
        other = [self.words.get(each, each) for each in question]
        return self.session.ask(other, explain=explain)


class _Nearest:
    """Nearest text by TF-IDF (Salton and Buckley 1988; logarithmic tf, smoothed idf)."""

    def __init__(self, entities: list[Entity]) -> None:
        self._entities = entities
        texts = [" ".join((*e.terms, *e.descriptions, *e.questions)) for e in entities]
        counts = [_counts(text) for text in texts]
        self._words = {word: n for n, word in enumerate(sorted(set().union(*counts)))}
        table = np.stack([self._row(each) for each in counts])
        self._idf = np.log((1 + len(texts)) / (1 + (table > 0).sum(axis=0))) + 1
        self._vectors = _unit(np.log1p(table) * self._idf)

    def __call__(self, question: str) -> Entity:
        vector = _unit(np.log1p(self._row(_counts(question))) * self._idf)
        return self._entities[int(np.argmax(self._vectors @ vector))]

    def _row(self, counts: Mapping[str, int]) -> np.ndarray:
        row = np.zeros(len(self._words))
        for word, count in counts.items():
            if word in self._words:
                row[self._words[word]] = count
        return row


def _counts(text: str) -> Mapping[str, int]:
    return Counter(re.findall("[a-z]+", text.lower()))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _told(name: str, setup: Setup, find: Callable[[MedicalImage, Labels], Found]) -> OneByOne:
    """A system that looks the labels up in the answer key; without labels it finds nothing."""
    labels = {(Path(pair.image).name, pair.question): pair.labels for pair in setup.pairs}

    def answer(image: MedicalImage, question: str) -> Found:
        asked = labels.get((image.source, question), ())
        found = find(image, asked) if asked else Found()
        return replace(found, text=", ".join(asked))

    return OneByOne(name, answer)


def _labels(setup: Setup) -> set[str]:
    return {label for pair in setup.pairs for label in pair.labels}


def _training_masks(index: Index, labels: set[str]) -> Mapping[str, np.ndarray]:
    """Label -> (N, 64, 64) share of each cell that the training masks cover."""
    masks: dict[str, list[np.ndarray]] = {}
    for record in index.records("train"):
        for label in labels.intersection(record.labels):
            mask = index.load_mask(record, label).astype(np.uint8) * 255
            small = Image.fromarray(mask).resize((_GRID, _GRID), Image.Resampling.BOX)
            share = np.asarray(small, dtype=np.float32) / np.float32(255)
            masks.setdefault(label, []).append(share)
    if not masks:
        raise DataError("the data set's split 'train' has none of the labels to compare")
    return {label: np.stack(small) for label, small in masks.items()}


def _best_cut(masks: np.ndarray) -> Mask:
    """(64, 64) bool: the mean above the threshold with the highest mean Dice on the masks."""
    mean = masks.mean(axis=0)
    cuts = [mean > share * mean.max() for share in np.linspace(0.1, 0.9, 17)]
    dices = [
        (2 * (masks * cut).sum((1, 2)) / (masks.sum((1, 2)) + cut.sum())).mean() for cut in cuts
    ]
    return cuts[int(np.argmax(dices))]


def _median_boxes(index: Index, labels: set[str]) -> Mapping[str, Box]:
    boxes: dict[str, list[Box]] = {}
    for record in index.records("train"):
        for label in labels.intersection(record.labels):
            mask = index.load_mask(record, label)
            if (box := mask_to_box(mask)) is not None:
                height, width = mask.shape
                x1, y1, x2, y2 = box
                relative = (x1 / width, y1 / height, x2 / width, y2 / height)
                boxes.setdefault(label, []).append(relative)
    return {label: tuple(np.median(found, axis=0)) for label, found in boxes.items()}


def _scaled(box: Box, image: MedicalImage) -> Box:
    x1, y1, x2, y2 = box
    return x1 * image.width, y1 * image.height, x2 * image.width, y2 * image.height


def _around(boxes: Sequence[Box]) -> Box:
    edges = np.asarray(boxes)
    low, high = edges[:, :2].min(axis=0), edges[:, 2:].max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _resized(mask: Mask, height: int, width: int) -> Mask:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) > 127
