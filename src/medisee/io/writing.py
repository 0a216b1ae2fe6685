"""Answers to files: overlay, JSON and masks; all of them or none."""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from medisee.errors import InputError
from medisee.structures import Answer

__all__ = ["free_stem", "write_answer"]

_SUFFIX = re.compile(r"(\.nii(\.gz)?|\.[A-Za-z][A-Za-z0-9]{0,4})$", re.IGNORECASE)


def write_answer(
    answer: Answer | Sequence[Answer],
    directory: str | Path,
    *,
    stem: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write `<stem>.overlay.png`, `<stem>.json` and per finding `<stem>.<n>.mask.png`.

    answer: several answers about one image are written as `<stem>.q1`, `<stem>.q2`...
    stem: defaults to the name of the image's file without its suffix.
    Masks count from 1 and are 8-bit PNG on the original grid, 255 inside; a refusal has none.
    Returns the files written. Raises InputError, with nothing written, when one of the files is
    there already and `overwrite` is false, or when the directory cannot be used. Overwriting
    also removes masks of an older answer with more findings.
    """
    answers = [answer] if isinstance(answer, Answer) else list(answer)
    folder = Path(directory)
    stems = _stems(answers, stem)
    taken = [path for name in stems for path in _files_of(folder, name)]
    if taken and not overwrite:
        raise InputError(f"{taken[0]}: is there already; choose another name or overwrite it")
    if folders := [path for path in taken if path.is_dir()]:
        raise InputError(f"{folders[0]}: is a folder; choose another name")
    with _folder(folder), tempfile.TemporaryDirectory(prefix=".medisee-", dir=folder) as draft:
        pairs = zip(answers, stems, strict=True)
        names = [name for one, base in pairs for name in _write(one, Path(draft), base)]
        for old in taken:
            if old.name not in names:
                old.unlink()
        return [(Path(draft) / name).replace(folder / name) for name in names]


def free_stem(answers: Sequence[Answer], directory: str | Path) -> str:
    """The default stem, with -2, -3... added while answers of that stem are in the directory."""
    base = _default_stem(answers[0])
    names = (base if number == 1 else f"{base}-{number}" for number in itertools.count(1))
    folder = Path(directory)
    return next(
        name for name in names if not any(_files_of(folder, stem) for stem in _stems(answers, name))
    )


def _default_stem(answer: Answer) -> str:
    return _SUFFIX.sub("", Path(answer.image.source).name)


def _stems(answers: Sequence[Answer], stem: str | None) -> list[str]:
    if not answers:
        raise InputError("there is no answer to write")
    base = stem if stem is not None else _default_stem(answers[0])
    if not base.strip(".") or base != Path(base).name or "\0" in base:
        raise InputError("the name of the output files must be a plain file name")
    if len(answers) == 1:
        return [base]
    return [f"{base}.q{number}" for number in range(1, len(answers) + 1)]


def _files_of(folder: Path, stem: str) -> list[Path]:
    """The files of an answer under this stem that exist."""
    if not folder.is_dir():
        return []
    ours = re.compile(re.escape(stem) + r"\.(overlay\.png|json|[1-9][0-9]*\.mask\.png)")
    return sorted(path for path in folder.iterdir() if ours.fullmatch(path.name))


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make the folder; when writing fails, say so in one line and leave no empty folder."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        reason = error.strerror or "no reason given"
        raise InputError(f"{folder}: cannot write there ({reason})") from error


def _write(answer: Answer, folder: Path, stem: str) -> list[str]:
    """Write one answer's files into the folder; their names."""
    names = [f"{stem}.overlay.png", f"{stem}.json"]
    answer.overlay().save(folder / names[0])
    text = json.dumps(answer.to_dict(), ensure_ascii=False, indent=2, allow_nan=False)
    (folder / names[1]).write_text(text + "\n", encoding="utf-8")
    for number, finding in enumerate(answer.findings, start=1):
        names.append(f"{stem}.{number}.mask.png")
        Image.fromarray(finding.mask.astype(np.uint8) * 255).save(folder / names[-1])
    return names
