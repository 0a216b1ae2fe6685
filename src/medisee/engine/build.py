"""`build(data, out)`: a labelled data set in, a reasoning data set out, whatever happens between.

The images are cut into chunks. A chunk's lines are written to one file under `work/parts`, whose
name follows from everything that its content follows from (settings, knowledge, engine, index,
sizes of its files) and which appears only when it is complete. So a run that was killed goes on
with the chunks that are missing, a changed input makes the chunks anew that it touches, and what
is put together from the parts at the end is the same byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from math import sqrt
from pathlib import Path
from typing import Any

import medisee
from medisee.data.sa_med2d import ImageRecord, Index
from medisee.engine.assemble import Assembly, assemble
from medisee.engine.intake import Intake, LeftOut, take_in
from medisee.engine.review import Reviewer
from medisee.engine.scene import Scene
from medisee.engine.writing import OfflineWriter, Quarantined, Writer
from medisee.entities import load_entities
from medisee.errors import DataError
from medisee.parallel import each, in_threads

__all__ = ["Settings", "build"]

_CHUNK = 16  # images: little is lost by a kill, and few files are made
_AGAIN = ".again"  # suffix of a part that lacks what asking another time may bring
_NOTHING = "the writer wrote no usable question about it"


@dataclass(frozen=True)
class Settings:
    """What decides the content of the built set, besides the input."""

    per_target: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Chunk:
    """Some images of the input, in its order, and where their lines go."""

    number: int
    entries: tuple[ImageRecord | LeftOut, ...]
    path: Path


@dataclass(frozen=True)
class _Survey:
    """What must be known of the whole input before the first image."""

    weights: Mapping[str, float]
    images: int
    digest: str


def build(
    data: str | Path,
    out: str | Path,
    settings: Settings | None = None,
    *,
    writer: Writer | None = None,
    shard: tuple[int, int] = (1, 1),
    workers: int = 1,
    ray: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Assembly | None:
    """Builds the set of `data` in the folder `out`; a build that was cut off goes on.

    Args:
        writer: who writes the implicit questions; the offline writer where none is given. With a
            writer that has threads, `workers` and `ray` do not count.
        shard: (i, n) makes the i-th of n shares of the parts only. The run that finds all parts
            done, on one machine or with the folders `work/parts` put together, assembles the set.
        ray: a Ray cluster that does the work; all its machines must see both folders.
        progress: called with images done and images in all.

    Returns:
        What was built; None while parts of other shards are missing.

    Raises:
        DataError: `data` is not in SA-Med2D's layout, or the settings make no sense.
    """
    settings = settings or Settings()
    if settings.per_target < 1 or not 1 <= shard[0] <= shard[1]:
        raise DataError("a build needs at least one question a target, and a shard such as 2/5")
    index, out = Index.open(data), Path(out)
    parts = out / "work" / "parts"
    if (out / "train.jsonl").exists() and not parts.is_dir():
        raise DataError(f"{out} holds a train.jsonl that no build wrote; choose another folder")
    survey, writer = _survey(index), writer or OfflineWriter()
    parts.mkdir(parents=True, exist_ok=True)
    plan = f"{settings}|{survey.digest}|{_engine_digest()}{writer.fingerprint}"
    chunk_writer = _ChunkWriter(Path(data), settings, survey.weights, writer)
    paths: list[Path] = []
    chunks = _noted(_chunks(index, plan, parts, 1 if writer.threads else _CHUNK), paths)
    _write_missing(chunk_writer, chunks, shard, (workers, ray), progress, survey.images)
    paths = [path if path.exists() else path.with_suffix(_AGAIN) for path in paths]
    if not all(path.exists() for path in paths):
        return None
    _tidy(out, {path.name for path in paths})
    return assemble(index, paths, out, {**asdict(settings), "engine": writer.version})


def _noted(chunks: Iterable[Chunk], paths: list[Path]) -> Iterator[Chunk]:
    """The chunks as they come, their paths kept."""
    for chunk in chunks:
        paths.append(chunk.path)
        yield chunk


def _survey(index: Index) -> _Survey:
    """Counts the labels and reads the whole index once, without holding it."""
    frequency: Counter[str] = Counter()
    digest, images = hashlib.sha256(), 0
    for entry in _entries(index):
        digest.update(repr(entry).encode())
        if isinstance(entry, ImageRecord):
            frequency.update(entry.labels)
            images += 1
    if not images:
        raise DataError("the data set has no image that can be read")
    known = load_entities()
    weights = {label: 1 / sqrt(n) for label, n in frequency.items() if label in known}
    return _Survey(weights, images, digest.hexdigest())


def _entries(index: Index) -> Iterator[ImageRecord | LeftOut]:
    for entry in index.entries():
        if isinstance(entry, ImageRecord):
            yield entry
        else:
            yield _left_out(str(entry))


def _left_out(error: str) -> LeftOut:
    """Of a line or mask that the index could not read, in words that can be counted."""
    file, _, reason = error.partition(": ")
    if "class id" in reason:
        known = "not in the class mapping" not in reason
        kind = "a mask name without a class id" if known else "unknown class id"
        return LeftOut(kind, file, pairs=1)
    return LeftOut("a line that is no image record", file)


def _chunks(index: Index, plan: str, folder: Path, size: int) -> Iterator[Chunk]:
    """The input in chunks; `plan` is all else that their content follows from."""
    held: list[ImageRecord | LeftOut] = []
    number = 0
    for entry in _entries(index):
        held.append(entry)
        if len(held) == size:
            yield _chunk(number, held, plan, index.root, folder)
            number, held = number + 1, []
    if held:
        yield _chunk(number, held, plan, index.root, folder)


def _chunk(
    number: int, entries: list[ImageRecord | LeftOut], plan: str, root: Path, folder: Path
) -> Chunk:
    sizes = [
        _size(root / file)
        for entry in entries
        if isinstance(entry, ImageRecord)
        for file in (entry.image, *(mask.file for mask in entry.masks))
    ]
    key = hashlib.sha256(f"{plan}|{entries}|{sizes}".encode()).hexdigest()[:16]
    return Chunk(number, tuple(entries), folder / f"{number:07d}-{key}.part")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _engine_digest() -> str:
    """Of the code and texts that write and review: other ones would write other records."""
    digest = hashlib.sha256(medisee.__version__.encode())
    for package in ("medisee.engine", "medisee.entities"):
        for file in sorted(resources.files(package).iterdir(), key=lambda file: file.name):
            if file.name.endswith((".py", ".yaml")):
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _write_missing(
    writer: _ChunkWriter,
    chunks: Iterable[Chunk],
    shard: tuple[int, int],
    workers: tuple[int, str],
    progress: Callable[[int, int], None] | None,
    total: int,
) -> None:
    done = 0

    def tell(images: int) -> None:
        nonlocal done
        done += images
        if progress is not None:
            progress(done, total)

    def missing() -> Iterator[Chunk]:
        for chunk in chunks:
            if chunk.number % shard[1] != shard[0] - 1:
                continue
            if chunk.path.exists():
                tell(len(chunk.entries))
            else:
                yield chunk

    threads, stop = writer.writer.threads, writer.writer.stop
    if threads:
        results = in_threads(writer, missing(), threads, stop)
    else:
        results = each(writer, missing(), *workers)
    for images in results:
        tell(images)


def _tidy(out: Path, wanted: set[str]) -> None:
    """Removes parts of earlier inputs and what a kill left behind."""
    parts = [
        path for path in (out / "work" / "parts").iterdir() if path.suffix in (".part", _AGAIN)
    ]
    stale = [path for path in parts if path.name not in wanted]
    stale += (out / "work").rglob("*.partial")
    stale += [
        path
        for name in ("*.jsonl", "card.md", "croissant.json")
        for path in out.glob(f"{name}.*.partial")
    ]
    for path in stale:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _ChunkWriter:
    """Writes the part of a chunk; picklable, so that any process can do it."""

    data: Path
    settings: Settings
    weights: Mapping[str, float]
    writer: Writer

    def __call__(self, chunk: Chunk) -> int:
        partial = chunk.path.with_suffix(f".{os.getpid()}.partial")
        quarantined: list[Quarantined] = []
        with partial.open("w", encoding="utf-8") as out:
            for entry in chunk.entries:
                for tag, value in self._lines(entry, quarantined):
                    out.write(f"{tag}\t{value}\n")
            out.flush()
            os.fsync(out.fileno())
        again = any(item.again for item in quarantined)
        partial.replace(chunk.path.with_suffix(_AGAIN) if again else chunk.path)
        return len(chunk.entries)

    def _lines(
        self, entry: ImageRecord | LeftOut, quarantined: list[Quarantined]
    ) -> Iterator[tuple[str, str]]:
        """Tagged lines: records by split, what was dropped, quarantined, left out, the image."""
        if isinstance(entry, LeftOut):
            yield "left_out", _json({"image": "", **asdict(entry)})
            return
        entities = load_entities()
        taken = take_in(Index(self.data), entry, entities)
        rng = random.Random(f"{self.settings.seed}|{entry.image}")
        scene = Scene(taken.image, taken.shapes, entities, self.weights, rng)
        reviewer = Reviewer(scene)
        asked: set[str] = set()
        missing: list[Quarantined] = []
        for item in self.writer.write(scene, self.settings.per_target, reviewer):
            if isinstance(item, Quarantined):
                missing.append(item)
                yield "quarantined", _json({"image": entry.image, **asdict(item)})
            else:
                asked.update(target.label for target in item.targets if item.kind == "implicit")
                yield taken.image.split, item.to_json()
        quarantined += missing
        lost = {item.label for item in missing if item.label} - asked
        taken.left_out += [LeftOut(_NOTHING, entry.image, label, 1) for label in sorted(lost)]
        for dropped in reviewer.dropped:
            yield (
                "dropped",
                _json(
                    {
                        "rule": dropped.rule,
                        "reason": dropped.reason,
                        "record": dropped.record.model_dump(mode="json", by_alias=True),
                    }
                ),
            )
        for left_out in taken.left_out:
            yield "left_out", _json({"image": entry.image, **asdict(left_out)})
        yield "image", _json(_image_line(entry, taken, reviewer, len(lost), missing))


def _image_line(
    entry: ImageRecord,
    taken: Intake,
    reviewer: Reviewer,
    lost: int,
    quarantined: Sequence[Quarantined],
) -> dict[str, Any]:
    """What the assembly needs of an image; of the patient only a hash."""
    patient = hashlib.sha256(entry.patient.encode()).hexdigest()[:16] if entry.patient else None
    return {
        "image": entry.image,
        "split": taken.image.split,
        "used": bool(taken.shapes),
        "pairs": len(entry.labels),
        "built": len(taken.shapes) - lost,
        "patient": patient,
        "likeness": taken.likeness,
        "checked": dict(reviewer.checked),
        "mended": dict(reviewer.mended),
        "dropped": dict(Counter(dropped.rule for dropped in reviewer.dropped)),
        "quarantined": dict(Counter(f"{item.stage}: {item.reason}" for item in quarantined)),
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
