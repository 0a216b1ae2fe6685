"""`medisee ask`: put questions to one image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medisee.commands.asking import (
    check_folder,
    open_image,
    open_session,
    save_answers,
    show_answer,
    show_image,
)
from medisee.commands.options import (
    DeviceOption,
    FrameOption,
    ImageArgument,
    JsonOption,
    ModelOption,
    OutOption,
    PlaneOption,
    SliceOption,
    WindowOption,
)
from medisee.commands.screen import print_json, print_question, spinner
from medisee.questions import check_question

if TYPE_CHECKING:
    from medisee.structures import Answer

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
    slice_: SliceOption = None,
    plane: PlaneOption = None,
    frame: FrameOption = None,
    window: WindowOption = None,
) -> None:
    """Ask an image questions; get masks, boxes and explanations.

    Writes STEM.overlay.png (picture), STEM.json (everything, masks as COCO RLE) and
    STEM.1.mask.png ... for each finding to the current folder or to --out. With --json it
    writes files only where --out is given; one question prints an object, several an array.

    Example: medisee ask example:abdomen-mr "Which organ makes bile?" --out results
    """
    folder = out if out is not None or as_json else Path()
    checked = [check_question(question) for question in questions]
    if folder is not None:
        check_folder(folder)
    opened = open_image(image, slice_, plane, frame, window)
    if not as_json:
        show_image(opened)
    session = open_session(opened, model, device)
    answer_all = _print_answers if as_json else _show_answers
    answers = answer_all(session, checked, explain)
    if folder is not None:
        save_answers(answers, folder, overwrite)
    if fail_on_refusal and any(answer.refusal is not None for answer in answers):
        raise typer.Exit(REFUSED)


def _print_answers(session: Any, questions: list[str], explain: bool) -> Sequence[Answer]:
    with spinner("Thinking ..."):
        answers: list[Answer] = session.ask(questions, explain=explain)
    values = [answer.to_dict() for answer in answers]
    print_json(values if len(values) > 1 else values[0])
    return answers


def _show_answers(session: Any, questions: list[str], explain: bool) -> Sequence[Answer]:
    answers = []
    for question in questions:
        print_question(question)
        answers.append(show_answer(session, question, explain))
    return answers
