"""What `ask` and `chat` share: open an image, put a question, show the answer, write the files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisee.commands.screen import (
    counting,
    describe_image,
    output,
    plain,
    print_error,
    print_refusal,
    print_result,
    print_text,
    print_written,
    spinner,
)
from medisee.errors import InputError

if TYPE_CHECKING:
    from medisee.commands.options import Plane
    from medisee.io.volume import VolumeAnswer
    from medisee.structures import Answer, MedicalImage

__all__ = [
    "at_hand",
    "check_folder",
    "check_sink",
    "load_model",
    "open_image",
    "open_session",
    "save_answers",
    "show_answer",
    "show_image",
]


@contextmanager
def at_hand(source: str, series: int | None = None) -> Iterator[str]:
    """The source as `medisee.io` opens it: what has a DICOMweb address is retrieved for the block.

    A bar on standard error tells how far that is.
    """
    from medisee.dicomweb import is_address, retrieved

    if not is_address(source):
        yield source
        return
    with ExitStack() as kept:
        with counting("Retrieving") as advance:
            place = kept.enter_context(retrieved(source, series, advance))
        yield str(place)


def check_sink(address: str, formats: Sequence[str]) -> tuple[str, ...]:
    """The formats to write for an archive, which takes DICOM only; InputError if it takes none."""
    from medisee.dicomweb import check_store

    with spinner("Calling the archive ..."):
        check_store(address)
    return tuple(formats) if {"seg", "sr"} & set(formats) else (*formats, "seg")


def open_image(
    source: str,
    slice: int | None,
    plane: Plane | None,
    frame: int | None,
    window: str | None,
    series: int | None = None,
    hide: Sequence[str] = (),
) -> MedicalImage:
    """Read the image that the user named."""
    from medisee.io import read_image

    with spinner(f"Reading {source} ..."):
        return read_image(
            source,
            slice=slice,
            plane=None if plane is None else plane.value,
            frame=frame,
            window=window,
            series=series,
            hide=hide,
        )


def show_image(image: MedicalImage) -> None:
    """Say what was read, and what the reader had to decide."""
    print_text(describe_image(image), "bold")
    for note in image.notes:
        print_text(note, "dim")
    print_text("")


def load_model(model: str, device: str | None, precision: str | None = None) -> Any:
    """Load a model behind a spinner."""
    from medisee.predictor import load

    with spinner(f"Loading {model} ..."):
        return load(model, device=device, precision=precision)


def open_session(
    image: MedicalImage, model: str, device: str | None, precision: str | None = None
) -> Any:
    """Load the model and let it look at the image; a spinner tells what takes its time."""
    loaded = load_model(model, device, precision)
    with spinner("Looking at the image ..."):
        return loaded.open(image)


def show_answer(session: Any, question: str, explain: bool = True) -> Answer:
    """Answer one question on the screen: explanation as it is written, then the findings."""
    if explain:
        answer = _stream(session, question)
    else:
        with spinner("Thinking ..."):
            answer = session.ask(question, explain=False)
        print_refusal(answer)
        if answer.text:
            print_text(answer.text)
    print_result(answer)
    return answer


def _stream(session: Any, question: str) -> Answer:
    """The answer is given first, with its findings; it is complete when the text has come."""
    pieces = iter(session.stream(question))
    with spinner("Thinking ..."):
        answer: Answer = next(pieces)
    print_refusal(answer)
    writer = _WordWrap(output().width)
    try:
        for piece in pieces:
            writer.write(piece)
        if not writer.started:
            writer.write(answer.text)
    finally:
        writer.finish()
    return answer


class _WordWrap:
    """Writes text that comes in pieces, each word as soon as it is whole, wrapped at `width`."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.started = False
        self._column = 0
        self._word = ""

    def write(self, piece: str) -> None:
        self.started = self.started or bool(piece)
        for char in plain(piece):
            if char.isspace():
                self._flush_word()
            else:
                self._word += char
        sys.stdout.flush()

    def finish(self) -> None:
        self._flush_word()
        if self._column:
            sys.stdout.write("\n")
        sys.stdout.flush()

    def _flush_word(self) -> None:
        if not self._word:
            return
        if self._column and self._column + 1 + len(self._word) > self.width:
            sys.stdout.write("\n")
            self._column = 0
        gap = " " if self._column else ""
        sys.stdout.write(gap + self._word)
        self._column += len(gap) + len(self._word)
        self._word = ""


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot take results before any time is spent on them."""
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents)
                   if place.exists())  # fmt: skip
    if not nearest.is_dir():
        raise InputError(f"{nearest} is a file, so no results can be written there; change --out")


def save_answers(
    answers: Sequence[Answer | VolumeAnswer],
    folder: Path,
    overwrite: bool = False,
    formats: Sequence[str] = (),
    sink: str | None = None,
) -> None:
    """Write the files of answers about one image and say where they lie.

    Unless `overwrite` is on, a number is added to their names where those are taken. sink: the
    archive that DICOM results are sent to.
    """
    from medisee.io import free_stem, write_answer

    stem = None if overwrite else free_stem(answers, folder)
    written = write_answer(answers, folder, stem=stem, overwrite=overwrite, formats=formats)
    print_written(written)
    if sink is not None:
        from medisee.dicomweb import store

        with spinner("Storing ..."):
            stored = store(sink, written)
        print_error(f"stored {stored} DICOM results in the archive")
