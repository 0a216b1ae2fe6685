"""`medisee chat`: many questions about one image."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisee.commands.asking import (
    at_hand,
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
    ModelOption,
    OutOption,
    PlaneOption,
    PrecisionOption,
    SliceOption,
    WindowOption,
)
from medisee.commands.screen import print_error, print_question, print_text
from medisee.errors import MediSeeError
from medisee.questions import check_question

if TYPE_CHECKING:
    from medisee.structures import Answer

__all__ = ["chat"]

HELP = """\
/save [FOLDER]   write the last answer's picture, JSON and masks
/help            these lines
/quit            leave (so does Ctrl-D; Ctrl-C stops an answer)"""


def chat(
    image: ImageArgument,
    out: OutOption = None,
    model: ModelOption = "nano",
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    slice_: SliceOption = None,
    plane: PlaneOption = None,
    frame: FrameOption = None,
    window: WindowOption = None,
) -> None:
    """Ask one image many questions, at a prompt.

    The image is looked at once, so every further question is quick, and a question can refer
    back to the ones before it. /save writes the last answer to the current folder or to --out.

    Example: medisee chat example:abdomen-mr
    """
    folder = out or Path()
    check_folder(folder)
    with at_hand(image) as source:
        opened = open_image(source, slice_, plane, frame, window)
    show_image(opened)
    session = open_session(opened, model, device, precision)
    if sys.stdin.isatty():
        print_text("Ask away. /help lists what else there is.", "dim")
    _Chat(session, folder).run()


class _Chat:
    """The loop at the prompt: reads a line, answers it or does what it commands."""

    def __init__(self, session: Any, folder: Path) -> None:
        self.session = session
        self.folder = folder
        self.last: Answer | None = None

    def run(self) -> None:
        while (line := _read_line()) is not None:
            try:
                if not self._handle(line.strip()):
                    return
            except MediSeeError as error:
                print_error(str(error))

    def _handle(self, line: str) -> bool:
        """Do one line; False when it ends the chat."""
        word, _, rest = line.partition(" ")
        if word in ("/quit", "/exit"):
            return False
        if word == "/help":
            print_text(HELP, "dim")
        elif word == "/save":
            self._save(Path(rest.strip()) if rest.strip() else self.folder)
        elif word.startswith("/"):
            print_error(f"there is no {word}; /help lists what there is")
        elif line:
            self._ask(check_question(line))
        return True

    def _save(self, folder: Path) -> None:
        if self.last is None:
            print_error("there is no answer to save yet")
        else:
            check_folder(folder)
            save_answers([self.last], folder)

    def _ask(self, question: str) -> None:
        try:
            self.last = show_answer(self.session, question)
        except KeyboardInterrupt:
            print_error("stopped")


def _read_line() -> str | None:
    """The next line; None at the end. With a terminal: line editing and history."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        if line.strip():
            print_question(line.strip())
        return line or None
    with suppress(ImportError):  # Windows has none: its console edits lines by itself
        import readline  # noqa: F401 - makes input() editable, with history
    try:
        return input("? ")
    except EOFError:
        print_text("")
        return None
