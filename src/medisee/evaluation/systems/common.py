"""What several systems share: the predictor protocol for those that answer one question at a time.

A system gives `answer(image, question)`; `OneByOne` opens images and makes the `Answer`s. Boxes of
systems without a box decoder are the smallest around their mask, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medisee.boxes import mask_to_box
from medisee.structures import Answer, Finding, MedicalImage, RefusalReason

__all__ = ["Box", "BoxSegmenter", "Found", "Mask", "OneByOne", "TextSegmenter", "filled_box"]

Box = tuple[float, float, float, float]
Mask = NDArray[np.bool_]

BoxSegmenter = Callable[[MedicalImage, Box], Mask]
"""Given a box, xyxy px: (H, W) bool. Keeps the last image's embedding."""


@dataclass(frozen=True)
class Found:
    """What a question led to: a mask, or a box alone, or nothing; and words, where there are any.

    score: as certain as the system says it is; 0.5 where it says nothing.
    """

    mask: Mask | None = None
    box: Box | None = None
    score: float = 0.5
    text: str = ""


class TextSegmenter(Protocol):
    """A segmenter that is prompted with the target's name."""

    def __call__(self, image: MedicalImage, phrase: str) -> Found:
        """What the phrase names in the image."""
        ...


@dataclass(frozen=True)
class OneByOne:
    """A system made of one function; whatever it found nothing for is a refusal.

    about: what the report shall say of it besides its name.
    """

    name: str
    answer: Callable[[MedicalImage, str], Found]
    about: Mapping[str, str] = field(default_factory=dict)

    def open(self, image: MedicalImage) -> _Session:
        """A session about an image."""
        return _Session(self, image)


@dataclass(frozen=True)
class _Session:
    system: OneByOne
    image: MedicalImage

    def ask(self, question: list[str], explain: bool = True) -> list[Answer]:
        """One answer per question, in their order."""
        return [self._answer(each) for each in question]

    def _answer(self, question: str) -> Answer:
        found = self.system.answer(self.image, question)
        findings = _findings(found, self.image)
        return Answer(
            question=question,
            text=found.text,
            findings=findings,
            refusal=None if findings else RefusalReason.NOT_IN_VIEW,
            warnings=[],
            image=self.image,
            model=self.system.name,
        )


def _findings(found: Found, image: MedicalImage) -> list[Finding]:
    """None where the mask is empty; a box alone stands for all pixels in it."""
    mask, box = found.mask, found.box
    if mask is None and box is not None:
        mask = filled_box(image, box)
    around = None if mask is None else mask_to_box(mask)
    if mask is None or around is None:
        return []
    return [Finding(mask=mask, box=box or around, score=min(max(found.score, 0.0), 1.0))]


def filled_box(image: MedicalImage, box: Box) -> Mask:
    """The mask that a box without a segmenter stands for: all of it, at least one pixel."""
    x1, y1, x2, y2 = (round(edge) for edge in box)
    mask = np.zeros((image.height, image.width), dtype=bool)
    mask[max(y1, 0) : max(y2, y1 + 1), max(x1, 0) : max(x2, x1 + 1)] = True
    return mask
