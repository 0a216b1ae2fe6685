"""`medisee ask`: put questions to one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medisee.commands.asking import (
    at_hand,
    check_folder,
    check_sink,
    load_model,
    open_image,
    open_session,
    save_answers,
    show_answer,
    show_image,
)
from medisee.commands.asking_volume import answered, show_volume, show_volume_answer
from medisee.commands.options import (
    AsOption,
    DeviceOption,
    FrameOption,
    HideOption,
    ImageArgument,
    JsonOption,
    ModelOption,
    OutOption,
    PlaneOption,
    PrecisionOption,
    SeriesOption,
    SliceOption,
    StoreOption,
    WindowOption,
)
from medisee.commands.screen import print_json, print_question, spinner
from medisee.errors import InputError
from medisee.questions import check_question

if TYPE_CHECKING:
    from medisee.io import MedicalVolume
    from medisee.io.volume import VolumeAnswer
    from medisee.structures import Answer, MedicalImage

__all__ = ["ask"]

REFUSED = 3
"""Exit code of --fail-on-refusal."""


def ask(
    image: ImageArgument,
    questions: Annotated[
        list[str],
        typer.Argument(metavar="QUESTION", help="One or more questions, each in quotes."),
    ],
    out: OutOption = None,
    as_json: JsonOption = False,
    model: ModelOption = "nano",
    explain: Annotated[
        bool, typer.Option("--explain/--no-explain", help="Explain in words, or masks alone.")
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files; else a number is added.")
    ] = False,
    fail_on_refusal: Annotated[
        bool, typer.Option("--fail-on-refusal", help="Exit with 3 when a question is refused.")
    ] = False,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    slice_: SliceOption = None,
    plane: PlaneOption = None,
    frame: FrameOption = None,
    window: WindowOption = None,
    series: SeriesOption = None,
    hide: HideOption = None,
    as_: AsOption = "",
    store: StoreOption = None,
) -> None:
    """Ask an image or a whole volume questions; get masks, boxes and explanations.

    Writes STEM.overlay.png (picture), STEM.json (everything, masks as COCO RLE) and
    STEM.1.mask.png ... for each finding to the current folder or to --out. With --json it
    writes files only where --out is given; one question prints an object, several an array.

    A NIfTI volume or a DICOM series is asked slice by slice and answered as one, with
    STEM.1.mask.nii.gz ...; stopped with Ctrl-C, the same command goes on where it was. So is a
    series in an archive: https://SERVER/dicom-web/studies/UID/series/UID.

    Example: medisee ask example:abdomen-mr "Which organ makes bile?" --out results
    """
    folder = out if out is not None or as_json else Path()
    from medisee.io import holds_volume, open_volume, parse_formats

    checked = [check_question(question) for question in questions]
    formats = parse_formats(as_)
    if folder is not None:
        check_folder(folder)
    if store is not None:
        if folder is None:
            raise InputError("--store sends the files that are written; name --out DIR too")
        formats = check_sink(store, formats)
    task = _Task(
        checked, model, device, precision, explain, as_json, folder, overwrite, formats, store
    )
    cut = "" if plane is None else plane.value
    choices: dict[str, Any] = {"frame": frame, "window": window, "series": series}
    choices["hide"] = hide or ()
    with at_hand(image, series) as source:
        if source != image:  # of a study only the series that was chosen is there
            choices["series"] = None
        if slice_ is None and holds_volume(source):
            with open_volume(source, plane=cut or None, **choices) as volume:
                answers: Sequence[Answer | VolumeAnswer] = _ask_volume(volume, task)
        else:
            opened = open_image(source, slice_, plane, **choices)
            answers = _ask_image(opened, task)
    if fail_on_refusal and any(answer.refusal is not None for answer in answers):
        raise typer.Exit(REFUSED)


@dataclass(frozen=True)
class _Task:
    """What to ask, of whom, and where the answers go."""

    questions: list[str]
    model: str
    device: str | None
    precision: str | None
    explain: bool
    as_json: bool
    folder: Path | None
    overwrite: bool
    formats: tuple[str, ...]
    store: str | None


def _ask_image(image: MedicalImage, task: _Task) -> Sequence[Answer]:
    from medisee.io import check_formats

    check_formats(image, task.formats)
    if not task.as_json:
        show_image(image)
    session = open_session(image, task.model, task.device, task.precision)
    answer_all = _print_answers if task.as_json else _show_answers
    answers = answer_all(session, task.questions, task.explain)
    if task.folder is not None:
        save_answers(answers, task.folder, task.overwrite, task.formats, task.store)
    return answers


def _ask_volume(volume: MedicalVolume, task: _Task) -> Sequence[VolumeAnswer]:
    from medisee.io import check_formats

    formats = task.formats or _usual_formats(volume)
    check_formats(volume, formats)
    if not task.as_json:
        show_volume(volume)
    model = load_model(task.model, task.device, task.precision)
    with answered(model, volume, task.questions, task.explain, task.folder) as answers:
        if task.as_json:
            _print_json(answers)
        else:
            for answer in answers:
                show_volume_answer(answer)
        if task.folder is not None:
            save_answers(answers, task.folder, task.overwrite, formats, task.store)
    return answers


def _usual_formats(volume: MedicalVolume) -> tuple[str, ...]:
    """A volume's masks are written as NIfTI unless it states no places."""
    return () if volume.affine is None and volume.reference.kind == "dicom" else ("nifti",)


def _print_answers(session: Any, questions: list[str], explain: bool) -> Sequence[Answer]:
    with spinner("Thinking ..."):
        answers: list[Answer] = session.ask(questions, explain=explain)
    _print_json(answers)
    return answers


def _print_json(answers: Sequence[Answer | VolumeAnswer]) -> None:
    values = [answer.to_dict() for answer in answers]
    print_json(values if len(values) > 1 else values[0])


def _show_answers(session: Any, questions: list[str], explain: bool) -> Sequence[Answer]:
    answers = []
    for question in questions:
        print_question(question)
        answers.append(show_answer(session, question, explain))
    return answers
