"""Asking a system all the pairs, into one JSONL file that survives a kill.

The first line states what was asked of whom; each further line is the answer to one pair, masks as
COCO RLE. What is there already is not asked again.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypedDict
from uuid import uuid4

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medisee.data.sa_med2d import Index
from medisee.errors import DataError
from medisee.evaluation.pairs import Pair, Selection, make_pairs
from medisee.parallel import each
from medisee.structures import RLE, Answer, MedicalImage, encode_rle

__all__ = ["Header", "Model", "Prediction", "Session", "predict", "read_header", "read_lines"]

FORMAT = "medisee.predictions/2"


class Session(Protocol):
    """One opened image."""

    def ask(self, question: list[str], explain: bool = True) -> list[Answer]:
        """One answer per question, in their order."""
        ...


class Model(Protocol):
    """Everything that can be evaluated.

    One that has a `folder` is recognised by its files; one that has `about` says more of itself.
    """

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    def open(self, image: MedicalImage) -> Session:
        """A session about an image."""
        ...


class Header(TypedDict):
    """The first line: who was asked what.

    model: its name; weights: SHA-256 over its folder's files, or None; explain: with words;
    asked: the `Selection`; about: what else the report shall say (system, readiness, settings).
    """

    format: str
    model: str
    weights: str | None
    explain: bool
    asked: dict[str, Any]
    about: dict[str, Any]


class PredictedFinding(TypedDict):
    """One finding: score in [0, 1], box xyxy px, mask on the image's grid."""

    score: float
    box: list[float]
    mask: RLE


class Prediction(TypedDict):
    """The answer to one pair.

    seconds: of each phase, as the system states them, and "wall": opening the image and answering
    all its questions, divided by their number; memory: the process's peak so far in MB, or None.
    """

    id: str
    image: str
    question: str
    text: str
    refusal: str | None
    findings: list[PredictedFinding]
    seconds: dict[str, float]
    memory: float | None


def predict(
    make: Callable[[], Model],
    index: Index,
    selection: Selection,
    path: Path,
    explain: bool = True,
    about: Mapping[str, Any] | None = None,
    workers: int = 1,
    ray: str = "",
) -> None:
    """Appends the answers that `path` still lacks: one session per image, one call to ask.

    make: gives the system; with more than one worker it must be picklable, and each worker calls
    it once; `ray` is a Ray cluster's address (see `parallel.each`). A pair with earlier rounds gets
    a session of its own, in which they are asked first.
    Raises DataError when the file holds answers of another system, or to another selection.
    """
    pairs = make_pairs(index, selection)
    asker = _Asker(make, index, explain)
    done = _resume(path, _header(asker.model, selection, explain, about or {}))
    missing = [pair for pair in pairs if pair.id not in done]
    groups = [list(g) for _, g in groupby(missing, key=lambda pair: (pair.image, pair.history))]
    with path.open("a", encoding="utf-8") as out, _progress() as bar:
        task = bar.add_task(f"Asking {asker.model.name}", total=len(pairs), completed=len(done))
        for lines in each(asker, groups, workers, ray):
            out.write("".join(json.dumps(line) + "\n" for line in lines))
            out.flush()
            bar.advance(task, len(lines))


def read_header(path: Path) -> Header:
    """The first line of a predictions file; DataError when it is none."""
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline())
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path.name}: the first line is not valid JSON") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError(f"{path.name}: is no predictions file of the format {FORMAT}")
    return header  # type: ignore[return-value]


def read_lines(path: Path) -> Iterator[tuple[int, Prediction | None]]:
    """Streams number and answer of every line after the first; None where it is not one."""
    with path.open(encoding="utf-8", errors="replace") as file:
        next(file, None)
        for number, line in enumerate(file, 2):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            yield number, entry if isinstance(entry, dict) else None  # type: ignore[misc]


class _Asker:
    """Answers the questions about one image; travels to workers without its model."""

    def __init__(self, make: Callable[[], Model], index: Index, explain: bool) -> None:
        self._make, self._index, self._explain = make, index, explain
        self._key = uuid4().hex

    @cached_property
    def model(self) -> Model:
        return self._make()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "model"}

    def __call__(self, pairs: Sequence[Pair]) -> list[Prediction]:
        model = _in_this_process(self)
        image = _open_image(self._index, pairs[0].image)
        started = time.perf_counter()
        session = model.open(image)
        for earlier in pairs[0].history:
            session.ask([earlier], explain=self._explain)
        answers = session.ask([pair.question for pair in pairs], explain=self._explain)
        wall = (time.perf_counter() - started) / len(pairs)
        return [_prediction(p, a, wall) for p, a in zip(pairs, answers, strict=True)]


_MADE: dict[str, Model] = {}


def _in_this_process(asker: _Asker) -> Model:
    """The asker's model; a worker is sent a copy of the asker with every image, and makes one."""
    if asker._key not in _MADE:
        _MADE.clear()
        _MADE[asker._key] = asker.model
    return _MADE[asker._key]


def _prediction(pair: Pair, answer: Answer, wall: float) -> Prediction:
    return {
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
        "seconds": {**{phase: float(s) for phase, s in answer.seconds.items()}, "wall": wall},
        "memory": _peak_memory(),
    }


def _peak_memory() -> float | None:
    """The most memory that this process has held, in MB; None where Python cannot tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)


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


def _header(model: Model, selection: Selection, explain: bool, about: Mapping[str, Any]) -> Header:
    return {
        "format": FORMAT,
        "model": model.name,
        "weights": _fingerprint(getattr(model, "folder", None)),
        "explain": explain,
        "asked": selection.to_dict(),
        "about": json.loads(json.dumps({**about, **getattr(model, "about", {})})),
    }


def _resume(path: Path, header: Header) -> set[str]:
    """The ids that are in the file, after cutting off a line that a kill left unfinished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    if not path.stat().st_size:
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return set()
    found = read_header(path)
    if found["asked"] != header["asked"]:
        raise DataError(f"{path}: holds answers to other questions; choose another folder")
    if found != header:
        raise DataError(
            f"{path}: holds answers of another system, of other weights or of other settings; "
            "choose another folder"
        )
    lines = list(read_lines(path))
    if broken := [number for number, line in lines if line is None or "id" not in line]:
        raise DataError(f"{path}, line {broken[0]}: is not an answer; take the line out")
    return {line["id"] for _, line in lines if line is not None}


def _fingerprint(folder: Path | None) -> str | None:
    """SHA-256 over the weights and settings in a model's folder; None for one without.

    `targets.json` is left out: what was measured is written there afterwards.
    """
    if folder is None:
        return None
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".onnx", ".json") and file.name != "targets.json":
            digest.update(file.name.encode())
            with file.open("rb") as content:
                while chunk := content.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
