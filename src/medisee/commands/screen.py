"""What people see in the terminal: results on standard output, progress on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from medisee.io.volume import VolumeAnswer
    from medisee.structures import Answer, Finding, MedicalImage

__all__ = [
    "counting",
    "describe_image",
    "findings_table",
    "human_bytes",
    "output",
    "plain",
    "plain_table",
    "print_error",
    "print_json",
    "print_question",
    "print_refusal",
    "print_result",
    "print_text",
    "print_written",
    "progress",
    "spinner",
]

_REFUSALS = {
    "not_in_view": "Not in this image.",
    "wrong_modality": "This kind of image does not show it.",
    "not_medical": "Not a question about a medical image.",
    "unclear": "The question is unclear.",
}


def plain(text: str) -> str:
    """`text` without control characters: file names and models must not steer the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}"
                   for char in text.replace("\t", " "))  # fmt: skip


def output() -> Console:
    """Standard output for results."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def progress() -> Console:
    """Standard error for progress."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def spinner(label: str) -> AbstractContextManager[Any]:
    """A spinner on standard error while something takes its time; silent in pipes."""
    from rich.markup import escape

    return progress().status(escape(plain(label)))


@contextmanager
def counting(label: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on standard error, told (done, in all if that is known); silent in pipes."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = progress()
    columns = (label, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(value: Any) -> None:
    """One JSON value on standard output."""
    import json

    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def print_text(text: str, style: str = "", wrap: bool = True) -> None:
    """Text on standard output, exactly as it is: no markup, no highlighting.

    `wrap` breaks lines between words; without it they can be copied whole.
    """
    output().print(plain(text), style=style or None, markup=False, soft_wrap=not wrap)


def print_error(line: str) -> None:
    """One line on standard error."""
    progress().print(plain(line), style="yellow", markup=False)


def print_question(question: str) -> None:
    """The question above its answer."""
    print_text(f"? {question}", "bold cyan")


def describe_image(image: MedicalImage) -> str:
    """What was read, in one line: name, kind, size in pixels, spacing."""
    parts = [image.source, image.modality or "kind of image unknown"]
    parts.append(f"{image.width} x {image.height} px")
    if image.spacing is not None:
        row, column = image.spacing
        parts.append(f"{column:.3g} x {row:.3g} mm a pixel")
    return ", ".join(parts)


def print_refusal(answer: Answer | VolumeAnswer) -> None:
    """The reason of a refusal, in a few words above the explanation; nothing for findings."""
    if answer.refusal is not None:
        print_text(_REFUSALS[answer.refusal.value], "bold yellow")


def print_result(answer: Answer) -> None:
    """Findings, then warnings; the explanation was printed before."""
    if answer.findings:
        output().print(findings_table(answer.findings, answer.image))
    for warning in answer.warnings:
        print_text(f"! {warning}", "yellow")
    print_text("")


def findings_table(findings: Sequence[Finding], image: MedicalImage) -> Table:
    """One line for each finding: label, score, box in pixels, size in mm where it is known."""
    rows = [
        (
            str(number),
            plain(finding.label or "-"),
            f"{finding.score:.2f}",
            ", ".join(f"{edge:.0f}" for edge in finding.box),
            _size(finding, image),
        )
        for number, finding in enumerate(findings, start=1)
    ]
    return plain_table(["#", "target", "score", "box (x1, y1, x2, y2)", "size"], rows, right={2})


def _size(finding: Finding, image: MedicalImage) -> str:
    x1, y1, x2, y2 = finding.box
    area = float(finding.mask.sum())
    if image.spacing is None:
        share = area / finding.mask.size
        return f"{x2 - x1:.0f} x {y2 - y1:.0f} px, {share:.1%} of the image"
    row, column = image.spacing
    square_mm = area * row * column
    amount = f"{square_mm / 100:.1f} cm²" if square_mm >= 100 else f"{square_mm:.1f} mm²"
    return f"{(x2 - x1) * column:.0f} x {(y2 - y1) * row:.0f} mm, {amount}"


def plain_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], right: set[int] | None = None
) -> Table:
    """A table without lines; `right` has the numbers of the columns that are right-aligned."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index in (right or set()) else "left")
    for row in rows:
        table.add_row(*(_cell(cell) for cell in row))
    return table


def _cell(text: str) -> Text:
    from rich.text import Text

    return Text(plain(text))


def print_written(paths: Sequence[Path]) -> None:
    """Where the results lie, on standard error."""
    for path in paths:
        progress().print(plain(f"wrote {path}"), style="dim", markup=False, soft_wrap=True)


def human_bytes(count: int) -> str:
    """A number of bytes as people read it: 0 B, 812 kB, 61.4 MB."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit != "MB" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
