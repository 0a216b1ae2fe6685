"""Asking a system all the pairs, into one JSONL file that survives a kill.

The first line states what was asked; each further line is the answer to one pair, masks as COCO
RLE. Images whose pairs are all there are not opened again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypedDict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medisee.data.sa_med2d import Index
from medisee.errors import DataError
from medisee.evaluation.pairs import Pair
from medisee.structures import RLE, Answer, MedicalImage, encode_rle

__all__ = ["Model", "Prediction", "Session", "predict", "read_predictions"]

FORMAT = "medisee.predictions/1"


class Session(Protocol):
    """One opened image."""

    def ask(self, question: list[str], explain: bool = True) -> list[Answer]:
        """One answer per question, in their order."""
        ...


class Model(Protocol):
    """Everything that can be evaluated; one that has a `folder` is recognised by its files."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    def open(self, image: MedicalImage) -> Session:
        """A session about an image."""
        ...


class PredictedFinding(TypedDict):
    """One finding: score in [0, 1], box xyxy px, mask on the image's grid."""

    score: float
    box: list[float]
    mask: RLE


class Prediction(TypedDict):
    """The answer to one pair."""

    id: str
    image: str
    question: str
    text: str
    refusal: str | None
    findings: list[PredictedFinding]
    seconds: dict[str, float]


def predict(model: Model, index: Index, pairs: Sequence[Pair], path: Path, explain: bool) -> None:
    """Appends the answers that `path` still lacks: one session per image, one call to ask."""
    weights = _fingerprint(getattr(model, "folder", None))
    header = {"format": FORMAT, "model": model.name, "weights": weights, "explain": explain}
    done = _resume(path, header)
    missing = [pair for pair in pairs if pair.id not in done]
    with path.open("a", encoding="utf-8") as out, _progress() as bar:
        task = bar.add_task(f"Asking {model.name}", total=len(pairs), completed=len(done))
        for image, group in groupby(missing, key=lambda pair: pair.image):
            asked = list(group)
            lines = _answers(model, _open_image(index, image), asked, explain)
            out.write("".join(json.dumps(line) + "\n" for line in lines))
            out.flush()
            bar.advance(task, len(asked))


def read_predictions(path: Path) -> dict[str, Prediction]:
    """The predictions of a file by pair; DataError when a line is broken."""
    return {line["id"]: line for line in _lines(path)[1:]}  # type: ignore[misc]


def _answers(
    model: Model, image: MedicalImage, pairs: Sequence[Pair], explain: bool
) -> Iterator[Prediction]:
    answers = model.open(image).ask([pair.question for pair in pairs], explain=explain)
    for pair, answer in zip(pairs, answers, strict=True):
        yield {
            "id": pair.id,
            "image": pair.image,
            "question": pair.question,
            "text": answer.text,
            "refusal": None if answer.refusal is None else answer.refusal.value,
            "findings": [
                {
                    "score": float(finding.score),
                    "box": [round(float(edge), 3) for edge in finding.box],
                    "mask": encode_rle(finding.mask),
                }
                for finding in answer.findings
            ],
            "seconds": {phase: float(s) for phase, s in answer.seconds.items()},
        }


def _open_image(index: Index, file: str) -> MedicalImage:
    """The image as a bare PNG would be read: nothing tells the system what it shows."""
    pixels = index.load_image(file)
    return MedicalImage(
        pixels=pixels,
        display=pixels,
        modality=None,
        spacing=None,
        orientation=None,
        source=Path(file).name,
    )


def _resume(path: Path, header: dict[str, Any]) -> set[str]:
    """The ids that are in the file, after cutting off a line that a kill left unfinished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    lines = _lines(path)
    if not lines:
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
    elif lines[0] != header:
        raise DataError(
            f"{path.name}: holds predictions of another system or of other weights; "
            "choose another folder"
        )
    return {line["id"] for line in lines[1:]}


def _fingerprint(folder: Path | None) -> str | None:
    """SHA-256 over the weights and settings in a model's folder; None for one without."""
    if folder is None:
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".onnx", ".json"):
            digest.update(file.name.encode())
            with file.open("rb") as content:
                while chunk := content.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def _lines(path: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise DataError(f"{path.name}, line {number}: is not valid JSON") from error
    return lines


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
