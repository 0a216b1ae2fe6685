"""`medisee batch`: the same questions to all images of a folder or of an archive."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import typer

from medisee.commands.asking import check_folder, check_sink
from medisee.commands.options import AsOption, DeviceOption, ModelOption, StoreOption
from medisee.commands.screen import counting, plain, plain_table, print_text, progress, spinner
from medisee.errors import InputError, MediSeeError
from medisee.hub import find_model
from medisee.questions import check_question

__all__ = ["batch"]

FAILED = 4
"""Exit code when some images could not be answered."""

_SUFFIX = re.compile(r"\.(png|jpe?g|tiff?|bmp|webp|dcm|nii(\.gz)?|zip)$", re.IGNORECASE)


@dataclass(frozen=True)
class _Source:
    """Where an image or volume is, what results and report call it, and a word that changes when
    it does."""

    place: str
    name: str
    state: str


@dataclass(frozen=True)
class _Job:
    """One image or volume and what to do with it; plain values, so that workers can take it."""

    source: _Source
    questions: tuple[str, ...]
    out: str
    model: str
    device: str | None
    explain: bool
    formats: tuple[str, ...]
    store: str | None

    @property
    def key(self) -> str:
        """Changes when the images, the questions or the way of asking do."""
        told = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Outcome:
    """A line of the report."""

    name: str
    key: str
    failed: str | None
    files: list[str]
    refusals: int
    seconds: float


def batch(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="Images, volumes and DICOM series, at any depth; or a DICOMweb search, such as "
            "https://SERVER/dicom-web/studies?StudyDate=20260101-.",
        ),
    ],
    questions: Annotated[
        Path,
        typer.Option(
            "--questions",
            "-q",
            help="Text file with one question a line, or JSON lines with image and question.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path(
        "results"
    ),
    model: ModelOption = "nano",
    explain: Annotated[
        bool, typer.Option("--explain/--no-explain", help="Explain in words, or masks alone.")
    ] = True,
    as_: AsOption = "",
    store: StoreOption = None,
    device: DeviceOption = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each loads the model.")] = 1,
    ray: Annotated[str, typer.Option(help="Ray cluster to use: auto, or ray://HEAD:10001.")] = "",
) -> None:
    """Ask the same questions about all images of a folder, or all series of an archive.

    Results lie in --out as the images lie in FOLDER. OUT/report.jsonl tells what was done and
    what failed and why. The same command again goes on where it was stopped, and tries again
    what failed. Exits with 4 when something failed.

    Example: medisee batch scans --questions questions.txt --out results --as seg
    """
    from medisee.io import parse_formats

    formats = parse_formats(as_)
    check_folder(out)
    asked = _read_questions(questions)
    find_model(model)
    if store is not None:
        formats = check_sink(store, formats)
    found = _found(folder, out)
    stems = _stems([source.name for source in found])
    jobs = [
        _Job(source, own, str(out / stem), model, device, explain, formats, store)
        for source, stem in zip(found, stems, strict=True)
        if (own := asked.of(source.name))
    ]
    if not jobs:
        raise InputError(f"{_shown(folder)}: holds no image that there is a question for")
    report = out / "report.jsonl"
    done = _done(report)
    left = [job for job in jobs if job.key not in done]
    _say(f"{len(jobs)} images, {len(jobs) - len(left)} of them done before")
    outcomes = list(_run(left, report, workers, ray))
    failed = [outcome for outcome in outcomes if outcome.failed]
    _show(len(jobs), failed, report)
    if failed:
        raise typer.Exit(FAILED)


@dataclass(frozen=True)
class _Questions:
    """Questions for every image, or for those named."""

    every: tuple[str, ...]
    by_name: dict[str, tuple[str, ...]]

    def of(self, name: str) -> tuple[str, ...]:
        return self.every + self.by_name.get(name, ())


def _read_questions(path: Path) -> _Questions:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a text file of questions") from error
    lines = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if path.suffix == ".jsonl":
        by_name: dict[str, tuple[str, ...]] = {}
        for number, line in enumerate(lines, start=1):
            try:
                value = json.loads(line)
                name, question = str(value["image"]), check_question(value["question"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path}: line {number} lacks image or question") from error
            by_name[name] = (*by_name.get(name, ()), question)
        return _Questions((), by_name)
    return _Questions(tuple(check_question(line) for line in lines), {})


def _found(place: str, out: Path) -> list[_Source]:
    """What is to be asked about: in a folder, or in an archive by study and series."""
    from medisee.dicomweb import is_address, search

    if not is_address(place):
        return list(_in_folder(Path(place), out))
    with spinner("Searching ..."):
        found = search(place)
    return [
        _Source(series.address, f"{series.study}/{series.uid}", str(series.images))
        for series in found
    ]


def _shown(place: str) -> str:
    """A search without its filters, which may say whose images are wanted."""
    return place.partition("?")[0]


def _in_folder(folder: Path, out: Path) -> Iterator[_Source]:
    """Images below the folder; a folder of DICOM slices is one source.

    The results' own folder is left out, should it lie inside.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder; medisee ask takes single images")
    skipped = out.resolve()
    for where in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]:
        if where.resolve() == skipped or skipped in where.resolve().parents:
            continue
        files = sorted(path for path in where.iterdir() if path.is_file())
        slices = [path for path in files if _is_dicom(path)]
        if len(slices) > 1:
            yield _Source(str(where), where.relative_to(folder).as_posix(), _state(files))
            files = [path for path in files if path not in slices]
        for path in files:
            if _SUFFIX.search(path.name) or path in slices:
                yield _Source(str(path), path.relative_to(folder).as_posix(), _state([path]))


def _state(files: Sequence[Path]) -> str:
    """Names, sizes and times of change."""
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def _stems(names: Sequence[str]) -> list[str]:
    """Where the results of each lie: without its suffix, unless two would then be the same."""
    short = [_SUFFIX.sub("", name) for name in names]
    count = Counter(short)
    return [name if count[stem] > 1 else stem for name, stem in zip(names, short, strict=True)]


def _is_dicom(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" and path.name != "DICOMDIR"
    return False


def _done(report: Path) -> set[str]:
    """Keys of what was answered before."""
    keys = set()
    with suppress(FileNotFoundError), report.open(encoding="utf-8") as lines:
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):
                value = json.loads(line)
                if value["failed"] is None:
                    keys.add(value["key"])
    return keys


def _run(jobs: Sequence[_Job], report: Path, workers: int, ray: str) -> Iterator[_Outcome]:
    from medisee.parallel import each

    report.parent.mkdir(parents=True, exist_ok=True)
    with counting("Images") as advance, report.open("a", encoding="utf-8") as lines:
        advance(0, len(jobs))
        for done, outcome in enumerate(each(_answer, jobs, workers, ray=ray), start=1):
            lines.write(json.dumps(asdict(outcome), ensure_ascii=False) + "\n")
            lines.flush()
            advance(done, len(jobs))
            yield outcome


def _answer(job: _Job) -> _Outcome:
    """Ask one image; what is wrong with it is told, and the others go on."""
    from medisee.dicomweb import is_address, retrieved, store
    from medisee.io import write_answer

    started = time.perf_counter()
    failed, files, refusals = None, [], 0
    try:
        with ExitStack() as kept:
            source = job.source.place
            if is_address(source):
                source = str(kept.enter_context(retrieved(source)))
            answers = list(_ask(job, source))
            place = Path(job.out)
            formats = _formats(job, answers)
            written = write_answer(
                answers, place.parent, stem=place.name, overwrite=True, formats=formats
            )
        if job.store is not None:
            store(job.store, written)
        files = [path.relative_to(place.parent).as_posix() for path in written]
        refusals = sum(answer.refusal is not None for answer in answers)
    except (MediSeeError, OSError, MemoryError) as error:
        failed = str(error) if isinstance(error, MediSeeError) else type(error).__name__
    seconds = round(time.perf_counter() - started, 2)
    return _Outcome(job.source.name, job.key, failed, files, refusals, seconds)


def _ask(job: _Job, source: str) -> Iterable[Any]:
    from medisee.io import check_formats, holds_volume, open_volume, read_image

    model = _load(job.model, job.device)
    if not holds_volume(source):
        image = read_image(source)
        check_formats(image, job.formats)
        return model.open(image).ask(list(job.questions), explain=job.explain)
    from medisee.volume import ask_volume

    with open_volume(source) as volume:
        check_formats(volume, job.formats)
        return ask_volume(model, volume, job.questions, explain=job.explain)


def _formats(job: _Job, answers: Sequence[Any]) -> Sequence[str]:
    from medisee.io.volume import VolumeAnswer

    volumes = [answer.volume for answer in answers if isinstance(answer, VolumeAnswer)]
    unplaced = any(volume.affine is None for volume in volumes)
    return job.formats or (("nifti",) if volumes and not unplaced else ())


@lru_cache(maxsize=1)
def _load(model: str, device: str | None) -> Any:
    """Once in each process."""
    from medisee.predictor import load

    return load(model, device=device)


def _say(text: str) -> None:
    progress().print(plain(text), style="dim", markup=False)


def _show(total: int, failed: Sequence[_Outcome], report: Path) -> None:
    print_text(f"{total - len(failed)} of {total} images answered; report in {report}", "bold")
    if failed:
        from medisee.commands.screen import output

        rows = [(plain(outcome.name), plain(outcome.failed or "")) for outcome in failed]
        output().print(plain_table(["image", "failed because"], rows))
