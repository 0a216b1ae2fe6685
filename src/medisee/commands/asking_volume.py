"""`medisee ask` about a whole volume: progress, results on the screen, files, going on later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medisee.commands.screen import (
    counting,
    plain,
    plain_table,
    print_error,
    print_question,
    print_refusal,
    print_text,
)

if TYPE_CHECKING:
    from rich.table import Table

    from medisee.io import MedicalVolume
    from medisee.io.volume import VolumeAnswer, VolumeFinding

__all__ = ["answered", "show_volume", "show_volume_answer"]


def show_volume(volume: MedicalVolume) -> None:
    """Say what was read, and what the reader had to decide."""
    plane = f"{volume.plane} slices" if volume.plane else "slices"
    size = " x ".join(str(n) for n in volume.reference.shape)
    print_text(f"{volume.source}, {len(volume)} {plane}, {size} voxels", "bold")
    for note in volume.notes:
        print_text(note, "dim")
    print_text("")


@contextmanager
def answered(
    model: Any,
    volume: MedicalVolume,
    questions: Sequence[str],
    explain: bool = True,
    folder: Path | None = None,
) -> Iterator[list[VolumeAnswer]]:
    """The answers, after a bar on standard error; the block writes them.

    A hidden file in `folder` keeps what is done until the block has ended well, so that the same
    command goes on where it was stopped.
    """
    from medisee.volume import Journal, ask_volume, fingerprint

    journal = None
    if folder is not None:
        journal = Journal(folder / f".medisee-{fingerprint(model, volume, questions)}.jsonl")
        if done := len(journal.read()):
            print_error(f"{done} of {len(volume)} slices were done before; going on")
    with counting("Slices") as advance:
        answers = ask_volume(
            model, volume, questions, explain=explain, journal=journal, progress=advance
        )
    yield answers
    if journal is not None:
        journal.close()


def show_volume_answer(answer: VolumeAnswer) -> None:
    """Question, explanation and findings on standard output."""
    print_question(answer.question)
    print_refusal(answer)
    if answer.text:
        print_text(answer.text)
    if answer.findings:
        from medisee.commands.screen import output

        output().print(_table(answer))
    for warning in answer.warnings:
        print_text(f"! {warning}", "yellow")
    print_text("")


def _table(answer: VolumeAnswer) -> Table:
    rows = [
        (
            str(number),
            plain(finding.label or "-"),
            f"{finding.score:.2f}",
            _range(finding),
            _size(finding, answer.volume.voxel_mm3),
        )
        for number, finding in enumerate(answer.findings, start=1)
    ]
    return plain_table(["#", "target", "best score", "slices", "volume"], rows, right={2})


def _range(finding: VolumeFinding) -> str:
    slices = sorted(finding.masks)
    count = f" ({len(slices)})" if len(slices) > 1 else ""
    return f"{slices[0]} to {slices[-1]}{count}" if len(slices) > 1 else str(slices[0])


def _size(finding: VolumeFinding, voxel_mm3: float | None) -> str:
    if voxel_mm3 is None:
        return f"{finding.voxels} voxels"
    return f"{finding.voxels * voxel_mm3 / 1000:.1f} ml"
