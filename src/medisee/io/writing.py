"""Answers to files: overlay, JSON, masks, NIfTI, DICOM-SEG and SR; all of them or none."""

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

from medisee.errors import InputError, MediSeeError
from medisee.extras import needs_extra
from medisee.io.volume import MedicalVolume, VolumeAnswer, findings_of
from medisee.structures import Answer, MedicalImage

__all__ = [
    "FORMATS",
    "check_formats",
    "encode_results",
    "free_stem",
    "parse_formats",
    "why_not",
    "write_answer",
]

FORMATS = ("nifti", "seg", "sr")
"""What can be written beside overlay, JSON and mask PNGs. `sr` brings `seg`, which it refers to."""

_ENDINGS = r"\.(overlay\.png|json|s(eg|r)\.dcm|[1-9][0-9]*\.mask\.(png|nii\.gz))"
_SUFFIX = re.compile(r"(\.nii(\.gz)?|\.[A-Za-z][A-Za-z0-9]{0,4})$", re.IGNORECASE)


def parse_formats(text: str) -> tuple[str, ...]:
    """Formats as "seg,sr", each once; InputError for one that is not known."""
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in FORMATS:
            raise InputError(
                f"results are not written as {word[:20]!r}; choose {', '.join(FORMATS)}"
            )
    return tuple(dict.fromkeys(words))


def check_formats(image: MedicalImage | MedicalVolume, formats: Sequence[str]) -> None:
    """Refuse formats that results about `image` cannot have, before any time is spent on them.

    Raises InputError for a SEG or SR about what is no DICOM file and for NIfTI without a place in
    a patient; MissingExtraError without the extra `dicom`.
    """
    if {"seg", "sr"} & set(formats):
        with needs_extra("DICOM output", "dicom"):
            import highdicom  # noqa: F401
    for name in formats:
        if (reason := why_not(image, name)) is not None:
            out = "nifti" if name == "nifti" else "seg and sr"
            raise InputError(f"{image.source}: {reason}; leave {out} out")


def why_not(image: MedicalImage | MedicalVolume, name: str) -> str | None:
    """Why results about `image` cannot be had in the format `name`; None where they can."""
    place = image.reference
    if name in ("seg", "sr"):
        if place is None or place.kind != "dicom" or not place.files:
            return "is not a DICOM file, so no DICOM result can refer to it"
    elif place is None or not place.files or (place.kind == "dicom" and image.affine is None):
        return "does not state where evenly spaced slices lie in a patient, which NIfTI needs"
    return None


def write_answer(
    answer: Answer | VolumeAnswer | Sequence[Answer | VolumeAnswer],
    directory: str | Path,
    *,
    stem: str | None = None,
    overwrite: bool = False,
    formats: Sequence[str] = (),
) -> list[Path]:
    """Write `<stem>.overlay.png`, `<stem>.json` and per finding `<stem>.<n>.mask.png`.

    answer: several answers about one image are written as `<stem>.q1`, `<stem>.q2`...; those
    about a volume have no mask PNGs. stem: defaults to the name of the image's file without its
    suffix. formats: of `FORMATS`; `nifti` gives `<stem>.<n>.mask.nii.gz` on the source's grid,
    `seg` and `sr` give `<stem>.seg.dcm` and `<stem>.sr.dcm` for answers with findings.
    Masks count from 1 and are 8-bit PNG on the original grid, 255 inside; a refusal has none.
    Returns the files written. Raises InputError, with nothing written, when one of the files is
    there already and `overwrite` is false, when the directory cannot be used, or when the source
    has no such format (a SEG refers to DICOM). Overwriting also removes masks of an older answer
    with more findings.
    """
    answers = [answer] if isinstance(answer, (Answer, VolumeAnswer)) else list(answer)
    chosen = parse_formats(",".join(formats))
    for one in answers:
        check_formats(one.image, chosen)
    folder = Path(directory)
    stems = _stems(answers, stem)
    taken = [path for name in stems for path in _files_of(folder, name)]
    if taken and not overwrite:
        raise InputError(f"{taken[0]}: is there already; choose another name or overwrite it")
    if folders := [path for path in taken if path.is_dir()]:
        raise InputError(f"{folders[0]}: is a folder; choose another name")
    with _folder(folder), tempfile.TemporaryDirectory(prefix=".medisee-", dir=folder) as draft:
        pairs = zip(answers, stems, strict=True)
        names = [name for one, base in pairs for name in _write(one, Path(draft), base, chosen)]
        for old in taken:
            if old.name not in names:
                old.unlink()
        return [(Path(draft) / name).replace(folder / name) for name in names]


def free_stem(answers: Sequence[Answer | VolumeAnswer], directory: str | Path) -> str:
    """The default stem, with -2, -3... added while answers of that stem are in the directory."""
    base = _default_stem(answers[0])
    names = (base if number == 1 else f"{base}-{number}" for number in itertools.count(1))
    folder = Path(directory)
    return next(
        name for name in names if not any(_files_of(folder, stem) for stem in _stems(answers, name))
    )


def _default_stem(answer: Answer | VolumeAnswer) -> str:
    return _SUFFIX.sub("", Path(answer.image.source).name)


def _stems(answers: Sequence[Answer | VolumeAnswer], stem: str | None) -> list[str]:
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
    ours = re.compile(re.escape(stem) + _ENDINGS)
    return sorted(path for path in folder.iterdir() if ours.fullmatch(path.name))


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Make the folder; when writing fails, say so in one line and leave no empty folder."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, MediSeeError) as error:
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if isinstance(error, MediSeeError):
            raise
        reason = error.strerror or "no reason given"
        raise InputError(f"{folder}: cannot write there ({reason})") from error


def _write(
    answer: Answer | VolumeAnswer, folder: Path, stem: str, formats: Sequence[str]
) -> list[str]:
    """Write one answer's files into the folder; their names."""
    names = [f"{stem}.overlay.png", f"{stem}.json"]
    answer.overlay().save(folder / names[0])
    text = json.dumps(answer.to_dict(), ensure_ascii=False, indent=2, allow_nan=False)
    (folder / names[1]).write_text(text + "\n", encoding="utf-8")
    if isinstance(answer, Answer):
        for number, finding in enumerate(answer.findings, start=1):
            names.append(f"{stem}.{number}.mask.png")
            Image.fromarray(finding.mask.astype(np.uint8) * 255).save(folder / names[-1])
    for ending, content in encode_results(answer, formats).items():
        names.append(f"{stem}.{ending}")
        (folder / names[-1]).write_bytes(content)
    return names


def encode_results(answer: Answer | VolumeAnswer, formats: Sequence[str]) -> dict[str, bytes]:
    """The findings in the terms of their source: content by ending, none for a refusal.

    `nifti` gives "<n>.mask.nii.gz", `seg` gives "seg.dcm", `sr` that and "sr.dcm". Raises
    InputError as `write_answer`; `check_formats` has seen to what the source lacks.
    """
    files: dict[str, bytes] = {}
    if not answer.findings:
        return files
    if "nifti" in formats:
        files |= _encode_niftis(answer)
    if "sr" in formats:
        from medisee.io.segmentation import encode_seg_and_sr

        files["seg.dcm"], files["sr.dcm"] = encode_seg_and_sr(answer)
    elif "seg" in formats:
        from medisee.io.segmentation import encode_seg

        files["seg.dcm"] = encode_seg(answer)
    return files


def _encode_niftis(answer: Answer | VolumeAnswer) -> dict[str, bytes]:
    from medisee.io.nifti import encode_nifti

    place = answer.image.reference
    if place is None:
        raise AssertionError("check_formats refuses this")
    return {
        f"{number}.mask.nii.gz": encode_nifti(finding.masks, place, answer.image.affine)
        for number, finding in enumerate(findings_of(answer), start=1)
    }
