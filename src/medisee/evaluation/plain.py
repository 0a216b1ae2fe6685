"""Plain comparisons that keep everybody honest, behind the protocol of every other system.

They are told the answer key's labels (they cannot read), never where the targets are, except
`true_boxes`, which is a ceiling: what a segmenter makes of the true box.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medisee.boxes import mask_to_box
from medisee.data.sa_med2d import Index
from medisee.errors import DataError
from medisee.evaluation.pairs import Pair
from medisee.structures import Answer, Finding, MedicalImage

__all__ = ["Plain", "category_means", "centred_boxes", "median_boxes", "true_boxes"]

Box = tuple[float, float, float, float]
Decode = Callable[[MedicalImage, Box], NDArray[np.bool_]]
"""A segmenter given a box, xyxy px: (H, W) bool."""

_GRID = 64


def filled_box(image: MedicalImage, box: Box) -> NDArray[np.bool_]:
    """The mask that a box without a segmenter stands for: all of it."""
    x1, y1, x2, y2 = (round(edge) for edge in box)
    mask = np.zeros((image.height, image.width), dtype=bool)
    mask[max(y1, 0) : max(y2, y1 + 1), max(x1, 0) : max(x2, x1 + 1)] = True
    return mask


@dataclass(frozen=True)
class Plain:
    """A comparison: `find(image, labels)` gives the mask and the box of a question's target."""

    name: str
    pairs: Sequence[Pair]
    find: Callable[[MedicalImage, tuple[str, ...]], tuple[NDArray[np.bool_], Box] | None]

    def open(self, image: MedicalImage) -> PlainSession:
        """A session that knows the labels of this image's questions."""
        return PlainSession(self, image)


class PlainSession:
    """Looks the question up in the answer key, then draws."""

    def __init__(self, system: Plain, image: MedicalImage) -> None:
        self._system = system
        self._image = image
        self._labels = {
            pair.question: pair.labels
            for pair in system.pairs
            if pair.image.rsplit("/", 1)[-1] == image.source
        }

    def ask(self, question: list[str], explain: bool = True) -> list[Answer]:
        """One answer per question; a question without labels gets no finding."""
        return [self._answer(each) for each in question]

    def _answer(self, question: str) -> Answer:
        labels = self._labels[question]
        found = self._system.find(self._image, labels) if labels else None
        findings = [] if found is None else [Finding(mask=found[0], box=found[1], score=0.5)]
        return Answer(
            question=question,
            text=", ".join(labels),
            findings=findings,
            refusal=None,
            warnings=[],
            image=self._image,
            model=self._system.name,
        )


def centred_boxes(pairs: Sequence[Pair], decode: Decode = filled_box) -> Plain:
    """The same box for everything: centred, half as wide and half as high as the image."""

    def find(image: MedicalImage, labels: tuple[str, ...]) -> tuple[NDArray[np.bool_], Box]:
        box = _scaled((0.25, 0.25, 0.75, 0.75), image)
        return decode(image, box), box

    return Plain("centred box", pairs, find)


def median_boxes(index: Index, pairs: Sequence[Pair], decode: Decode = filled_box) -> Plain:
    """The median box of the category in the training images, relative to the image."""
    boxes = _median_boxes(index, {label for pair in pairs for label in pair.labels})

    def find(image: MedicalImage, labels: tuple[str, ...]) -> tuple[NDArray[np.bool_], Box] | None:
        known = [_scaled(boxes[label], image) for label in labels if label in boxes]
        if not known:
            return None
        masks = [decode(image, box) for box in known]
        return np.logical_or.reduce(masks), _around(known)

    return Plain("median box of the category", pairs, find)


def true_boxes(index: Index, split: str, pairs: Sequence[Pair], decode: Decode) -> Plain:
    """A ceiling: the segmenter is given the true box of each target."""
    records = {record.image.rsplit("/", 1)[-1]: record for record in index.records(split)}

    def find(image: MedicalImage, labels: tuple[str, ...]) -> tuple[NDArray[np.bool_], Box] | None:
        masks = (index.load_mask(records[image.source], label) for label in labels)
        boxes = [box for mask in masks if (box := mask_to_box(mask)) is not None]
        if not boxes:
            return None
        return np.logical_or.reduce([decode(image, box) for box in boxes]), _around(boxes)

    return Plain("true box", pairs, find)


def category_means(index: Index, pairs: Sequence[Pair]) -> Plain:
    """The mean training mask of the category, cut where it fits the training masks best."""
    wanted = {label for pair in pairs for label in pair.labels}
    means = {label: _best_cut(masks) for label, masks in _training_masks(index, wanted).items()}

    def find(image: MedicalImage, labels: tuple[str, ...]) -> tuple[NDArray[np.bool_], Box] | None:
        known = [
            _resized(means[label], image.height, image.width) for label in labels if label in means
        ]
        mask = np.logical_or.reduce(known) if known else None
        box = None if mask is None else mask_to_box(mask)
        return None if mask is None or box is None else (mask, box)

    return Plain("mean mask of the category", pairs, find)


def _training_masks(index: Index, labels: set[str]) -> Mapping[str, NDArray[np.float32]]:
    """Label -> (N, 64, 64) share of each cell that the training masks cover."""
    masks: dict[str, list[NDArray[np.float32]]] = {}
    for record in index.records("train"):
        for label in labels.intersection(record.labels):
            mask = index.load_mask(record, label).astype(np.uint8) * 255
            small = Image.fromarray(mask).resize((_GRID, _GRID), Image.Resampling.BOX)
            share = np.asarray(small, dtype=np.float32) / np.float32(255)
            masks.setdefault(label, []).append(share)
    if not masks:
        raise DataError("the data set's split 'train' has none of the labels to compare")
    return {label: np.stack(small) for label, small in masks.items()}


def _best_cut(masks: NDArray[np.float32]) -> NDArray[np.bool_]:
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


def _resized(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) > 127
