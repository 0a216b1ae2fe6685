"""How much two runtimes of one model differ, on the same images and questions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from medisee.boxes import box_iou
from medisee.errors import DataError
from medisee.evaluation.metrics import Overlap
from medisee.evaluation.predictions import Model
from medisee.structures import Answer

__all__ = ["Parity", "compare"]


@dataclass(frozen=True)
class Parity:
    """Agreement of two runtimes.

    Attributes:
        questions: how many were asked.
        answers: share that both answer or both refuse, with equally many findings.
        dice, box_iou: means over the findings of those.
        text: share with the same words.
    """

    questions: int
    answers: float
    dice: float
    box_iou: float
    text: float

    def to_text(self) -> str:
        """One line for people."""
        return (
            f"{self.questions} questions: {self.answers:.1%} answered alike, masks' Dice "
            f"{self.dice:.4f}, boxes' IoU {self.box_iou:.4f}, {self.text:.1%} in the same words"
        )


def compare(first: Model, second: Model, asked: Iterable[tuple[Any, list[str]]]) -> Parity:
    """Asks two models the same questions about (image, questions) and compares the answers.

    Raises:
        DataError: nothing to ask.
    """
    pairs = [
        pair
        for image, questions in asked
        for pair in zip(
            first.open(image).ask(questions), second.open(image).ask(questions), strict=True
        )
    ]
    if not pairs:
        raise DataError("a comparison needs at least one question")
    alike = [(a, b) for a, b in pairs if len(a.findings) == len(b.findings)]
    masks, boxes = zip(*(_agreement(a, b) for a, b in alike), strict=True) if alike else ((), ())
    return Parity(
        questions=len(pairs),
        answers=len(alike) / len(pairs),
        dice=_mean([value for values in masks for value in values]),
        box_iou=_mean([value for values in boxes for value in values]),
        text=float(np.mean([a.text == b.text for a, b in pairs])),
    )


def _agreement(first: Answer, second: Answer) -> tuple[list[float], list[float]]:
    """Dice and box IoU of each finding."""
    found = list(zip(first.findings, second.findings, strict=True))
    masks = [Overlap.of(a.mask, b.mask).dice for a, b in found]
    boxes = [float(box_iou([a.box], [b.box])[0, 0]) for a, b in found]
    return masks, boxes


def _mean(values: list[float]) -> float:
    """1.0 without values: nothing differs."""
    return float(np.mean(values)) if values else 1.0
