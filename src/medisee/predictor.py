"""Where images meet models: `load(...)` -> Model, `.open(image)` -> Session, `.ask(question)`.

An image is encoded once per session. Masks and boxes of all questions of a call come out of one
pass, before any word of an explanation is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, overload

from .calibration import Calibration
from .entities import Entity, load_entities
from .errors import ModelError
from .extras import needs_extra
from .familiarity import Familiarity
from .hub import compiled, find_model, model_info, weights_checksum
from .io import read_image
from .processing import (
    REFUSAL_OPENINGS,
    MediSeeProcessor,
    RawAnswer,
    SegmenterInput,
    to_findings,
)
from .questions import check_question
from .structures import Answer, Finding, MedicalImage

__all__ = ["Model", "Session", "load"]

ROUNDS = 2
"""How many earlier rounds a question is read with."""

Rounds = Sequence[tuple[str, str]]
"""Earlier rounds of a conversation: question and explanation."""

UNFAMILIAR = "This image is unlike those that the model was trained on; take the answer with care."
NO_ORIENTATION = (
    "The file does not say which side is the patient's left; the usual display was assumed."
)
NOT_ENGLISH = "The model reads English; this question seems to be in another script."


def load(
    name: str = "nano",
    device: str | None = None,
    runtime: str | None = None,
    precision: str | None = None,
) -> Model:
    """A model by name ("nano"), folder or hub id.

    Args:
        device: "cpu", "cuda", ...; None: the CPU with onnx, with torch a GPU where there is one.
        runtime: "onnx", "openvino" (onnx, but the image encoder runs on OpenVINO: faster on
            processors with bfloat16 units) or "torch"; None takes onnx for a compiled model on
            the CPU.
        precision: of the language model with torch, "fp32", "bf16", "int8" or "int4"; None: by
            size and by what fits. Large models tell the memory that they will take.

    Raises:
        ModelError: no such model, broken weights, an unknown runtime or device.
        MissingExtraError: torch is needed and not installed.
    """
    if runtime not in (None, "onnx", "openvino", "torch"):
        raise ModelError(f"there is no runtime {runtime!r}; choose onnx, openvino or torch")
    folder = find_model(name)
    processor = MediSeeProcessor.from_pretrained(folder)
    light = compiled(folder) and device in (None, "cpu") and precision is None
    chosen = runtime or ("onnx" if light else "torch")
    if chosen == "torch":
        with needs_extra("running this model", "torch"):
            from .model.inference import TorchRuntime
        placed = TorchRuntime.load(folder, processor, device, precision)
        return Model(name, folder, processor, placed)
    if precision is not None:
        raise ModelError(f"runtime {chosen} has one precision; for another choose runtime torch")
    if device not in (None, "cpu"):
        raise ModelError(
            f"runtime {chosen} runs on the CPU only; for {device} choose runtime torch"
        )
    from .runtime import OnnxRuntime

    placed_here = OnnxRuntime.load(folder, processor, openvino=chosen == "openvino")
    return Model(name, folder, processor, placed_here)


class Runtime(Protocol):
    """What runs a model: the three phases, in arrays.

    What `encode` gives is the runtime's own affair, but for `embedding`, (1, C, E, E), which tells
    whether an image is familiar. `exact_batches`: a question is answered the same, up to the
    rounding of floats, whether it is asked alone or with others.
    """

    exact_batches: bool

    def encode(self, image: SegmenterInput, mllm_pixels: Any = None) -> Any:
        """Phase 1: once per image."""

    def perceive(self, image: Any, questions: list[list[int]], accept: float) -> list[RawAnswer]:
        """Phase 2: decisions, masks and boxes of all questions (token ids) in one batch."""

    def explain(self, raw: RawAnswer, opening: int | None) -> Iterator[int]:
        """Phase 3: token ids of the explanation."""


@dataclass(frozen=True)
class Model:
    """A loaded model; `open` an image, then ask."""

    name: str
    folder: Path
    processor: MediSeeProcessor
    runtime: Runtime

    @property
    def info(self) -> dict[str, Any]:
        """Licence, training sources and targets, as the model folder states them."""
        return model_info(self.folder)

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the weights, in hexadecimal: what tells one trained model from another."""
        return weights_checksum(self.folder)

    @property
    def exact_batches(self) -> bool:
        """Whether questions that are asked together are answered as each would be alone."""
        return self.runtime.exact_batches

    @property
    def calibration(self) -> Calibration:
        """Scores and refusals as fitted on the validation split; the identity where not fitted."""
        path = self.folder / "calibration.json"
        if path.is_file():
            return Calibration.load(path)
        return Calibration("isotonic", (0.0, 1.0), (0.0, 1.0), refuse_above=0.5)

    def open(self, image: Any) -> Session:
        """Encodes an image (path, bytes, PIL, array, MedicalImage) for any number of questions.

        Raises:
            InputError: an image that cannot be read.
        """
        medical = image if isinstance(image, MedicalImage) else read_image(image)
        return Session(self, medical)


class Session:
    """One image and the conversation about it."""

    def __init__(self, model: Model, image: MedicalImage) -> None:
        self.model, self.image = model, image
        self.rounds: list[tuple[str, str]] = []
        self._calibration = model.calibration
        started = time.perf_counter()
        self._input: SegmenterInput = model.processor.segmenter_input(image.display)
        own = model.processor.mllm_pixels(image.display)
        self._encoded = model.runtime.encode(self._input, own)
        self._encode_seconds = time.perf_counter() - started
        self._unfamiliar = Familiarity.of(model.folder).is_unlike(self._encoded.embedding)

    @overload
    def ask(self, question: str, explain: bool = True) -> Answer: ...
    @overload
    def ask(self, question: list[str], explain: bool = True) -> list[Answer]: ...

    def ask(self, question: str | list[str], explain: bool = True) -> Answer | list[Answer]:
        """Answers one question, or several that do not know of each other.

        Earlier rounds of the session are read along, so that "the one to its left" can refer
        back. With `explain=False` the masks come alone and no word is decoded.

        Raises:
            InputError: an empty or too long question.
        """
        asked = [question] if isinstance(question, str) else list(question)
        begun = self.begin(asked)
        if explain:
            for _, words in begun:
                for _ in words:
                    pass
        answers = [answer for answer, _ in begun]
        self.rounds += [(answer.question, answer.text) for answer in answers if answer.text]
        return answers[0] if isinstance(question, str) else answers

    def stream(self, question: str) -> Iterator[Answer | str]:
        """Yields the Answer with its findings first, then its explanation piece by piece.

        The Answer that was yielded gains its text and labels when the last piece is out.
        """
        [(answer, words)] = self.begin([question])
        yield answer
        yield from words
        self.rounds.append((answer.question, answer.text))

    def begin(
        self, questions: Sequence[str], histories: Sequence[Rounds] | None = None
    ) -> list[tuple[Answer, Iterator[str]]]:
        """Each question's Answer with its findings, and its explanation, decoded as it is read.

        For those who serve many people at once: all questions go through the model together, and
        the caller may read the explanations in any order, or not at all. `histories` has the
        rounds that each question is read with (the session's own where it is None); nothing is
        added to the session's rounds.

        Raises:
            InputError: an empty or too long question.
        """
        if not questions:
            return []
        checked = [check_question(question) for question in questions]
        rounds = [self.rounds] * len(checked) if histories is None else histories
        pairs = self._perceive(checked, rounds)
        return [(answer, self._words(answer, raw)) for answer, raw in pairs]

    def _perceive(
        self, checked: list[str], histories: Sequence[Rounds]
    ) -> list[tuple[Answer, RawAnswer]]:
        """Phase 2 of all questions in one batch."""
        started = time.perf_counter()
        ids = [
            self.model.processor.question_ids(question, history[-ROUNDS:])
            for question, history in zip(checked, histories, strict=True)
        ]
        threshold = self._calibration.refuse_above
        accept = 0.0 if threshold is None else 1 - threshold
        raws = self.model.runtime.perceive(self._encoded, ids, accept)
        answers = [self._answer(q, raw) for q, raw in zip(checked, raws, strict=True)]
        elapsed = time.perf_counter() - started
        for answer in answers:
            answer.seconds = {"encode": self._encode_seconds, "perceive": elapsed}
        return list(zip(answers, raws, strict=True))

    def _answer(self, question: str, raw: RawAnswer) -> Answer:
        findings = to_findings(
            raw,
            self._input,
            lambda score: float(self._calibration(score)),
            self.model.processor.config.mask_boxes,
        )
        return Answer(
            question=question,
            text="",
            findings=findings,
            refusal=raw.refusal(),
            warnings=self._warnings(question),
            image=self.image,
            model=self.model.name,
        )

    def _warnings(self, question: str) -> list[str]:
        warnings = [UNFAMILIAR] if self._unfamiliar else []
        if self.image.orientation is None and _speaks_of_sides(question):
            warnings.append(NO_ORIENTATION)
        letters = [char for char in question if char.isalpha()]
        if sum(char.isascii() for char in letters) < 0.5 * len(letters):
            warnings.append(NOT_ENGLISH)
        return warnings

    def _words(self, answer: Answer, raw: RawAnswer) -> Iterator[str]:
        """Phase 3: yields the explanation piece by piece, then completes the answer."""
        processor, started = self.model.processor, time.perf_counter()
        opening = None
        if answer.refusal is not None:
            opening = processor.openings[1 + list(REFUSAL_OPENINGS).index(answer.refusal)]
        ids: list[int] = []
        for token in self.model.runtime.explain(raw, opening):
            ids.append(token)
            text = processor.decode(ids)
            # A character of several bytes is whole only with its last token.
            if not text.endswith("\ufffd") and len(text) > len(answer.text):
                piece, answer.text = text[len(answer.text) :], text
                yield piece
        answer.findings = label_findings(answer.findings, answer.text)
        if self.image.orientation is None and _speaks_of_sides(answer.text):
            answer.warnings = list(dict.fromkeys([*answer.warnings, NO_ORIENTATION]))
        answer.seconds["explain"] = time.perf_counter() - started


def label_findings(findings: list[Finding], text: str) -> list[Finding]:
    """Findings with the names that the explanation gives them, one sentence each, in order.

    Those that have a name already, from the model's states, keep it.
    """
    if all(finding.label is not None for finding in findings):
        return findings
    named = [entity.name for sentence in text.split(". ") if (entity := _first_entity(sentence))]
    labels = named + [None] * (len(findings) - len(named))
    return [
        Finding(f.mask, f.box, f.score, f.similarity, label)
        for f, label in zip(findings, labels, strict=False)
    ]


def _first_entity(sentence: str) -> Entity | None:
    """The entity whose name opens the sentence, as explanations are written."""
    found = load_entities().find(sentence)
    lower = sentence.lower()
    places = [(lower.find(entity.name.lower()), -len(entity.name), entity) for entity in found]
    openings = [place for place in places if place[0] >= 0]
    return min(openings, key=lambda place: place[:2])[2] if openings else None


def _speaks_of_sides(text: str) -> bool:
    words = text.lower().split()
    return bool({"left", "right"} & {word.strip(".,;:?!()'\"") for word in words})
