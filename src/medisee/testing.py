"""A model without weights, for testing what is built on top of `medisee`.

    monkeypatch.setattr("medisee.predictor.load", lambda *_, **__: FakeModel())

It follows the predictor's protocol, is quick and always gives the same answer: a filled ellipse in
the middle of the image. A question that holds one of the words of `refuse` is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from medisee.boxes import mask_to_box
from medisee.questions import check_question
from medisee.structures import Answer, Finding, MedicalImage, RefusalReason

__all__ = ["FakeModel", "FakeSession"]

REFUSE: Mapping[str, RefusalReason] = {
    "absent": RefusalReason.NOT_IN_VIEW,
    "weather": RefusalReason.NOT_MEDICAL,
}


class FakeModel:
    """Opens images like a real model; `label` is what every finding is called."""

    name = "fake"
    checksum = "0" * 64
    exact_batches = True

    def __init__(self, label: str = "liver", refuse: Mapping[str, RefusalReason] = REFUSE) -> None:
        self.label = label
        self.refuse = refuse

    @property
    def info(self) -> dict[str, Any]:
        """Licence, sources and targets, as every model states them."""
        return {"name": self.name, "licence": "APACHE-2.0", "sources": [], "targets": []}

    def open(self, image: MedicalImage) -> FakeSession:
        """A session about `image`, which must have been read before."""
        return FakeSession(self, image)


class FakeSession:
    """Answers questions about one image; `asked` has them all, in order."""

    def __init__(self, model: FakeModel, image: MedicalImage) -> None:
        self.model = model
        self.image = image
        self.asked: list[str] = []

    @overload
    def ask(self, question: str, explain: bool = True) -> Answer: ...
    @overload
    def ask(self, question: list[str], explain: bool = True) -> list[Answer]: ...

    def ask(self, question: str | list[str], explain: bool = True) -> Answer | list[Answer]:
        """One answer for a question, a list of answers for a list."""
        if isinstance(question, str):
            return self._answer(question, explain)
        return [self._answer(each, explain) for each in question]

    def stream(self, question: str) -> Iterator[Answer | str]:
        """The answer with its findings first, then the explanation word by word."""
        [(answer, words)] = self.begin([question])
        yield answer
        yield from words

    def begin(
        self, questions: Sequence[str], histories: Sequence[Sequence[tuple[str, str]]] | None = None
    ) -> list[tuple[Answer, Iterator[str]]]:
        """Each question's answer with its findings, and its explanation word by word."""
        return [_in_pieces(self._answer(question, explain=True)) for question in questions]

    def _answer(self, question: str, explain: bool) -> Answer:
        question = check_question(question)
        self.asked.append(question)
        refusal = next((why for word, why in self.model.refuse.items() if word in question), None)
        label = self.model.label if explain else None
        findings = [] if refusal else [_finding(self.image, label)]
        text = "I cannot answer that." if refusal else f"The {self.model.label} is in the middle."
        return Answer(
            question=question,
            text=text if explain or refusal else "",
            findings=findings,
            refusal=refusal,
            warnings=[] if question.isascii() else ["The question is not in English."],
            image=self.image,
            model=self.model.name,
            seconds={"encode": 0.0, "perceive": 0.0, "explain": 0.0},
        )


def _in_pieces(answer: Answer) -> tuple[Answer, Iterator[str]]:
    """The answer without its text, and the words that bring it."""
    text, answer.text = answer.text, ""

    def words() -> Iterator[str]:
        for word in text.split():
            piece = f"{word} "
            answer.text += piece
            yield piece
        answer.text = text

    return answer, words()


def _finding(image: MedicalImage, label: str | None) -> Finding:
    mask = _ellipse(image.height, image.width)
    box = mask_to_box(mask)
    if box is None:
        raise AssertionError("an ellipse in the middle holds at least one pixel")
    return Finding(mask=mask, box=box, score=0.75, label=label)


def _ellipse(height: int, width: int) -> NDArray[np.bool_]:
    """Ellipse of half the image's height and width; at least the middle pixel."""
    row, column = np.ogrid[:height, :width]
    y = (row - (height - 1) / 2) / max(height / 4, 1)
    x = (column - (width - 1) / 2) / max(width / 4, 1)
    return np.asarray(x * x + y * y <= 1.0)
