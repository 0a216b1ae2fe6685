"""`medisee convert`: other people's checkpoints into model folders of ours."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medisee.commands.options import JsonOption
from medisee.commands.screen import human_bytes, print_json, print_text, progress
from medisee.extras import needs_extra
from medisee.hub import folder_size

if TYPE_CHECKING:
    from medisee.model.convert import Conversion

__all__ = ["convert"]


class Precision(str, Enum):
    """How numbers are stored."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"


def convert(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="Folder or files of one checkpoint, or of its parts: a LLaVA and a SAM make a "
            "fresh MediSee.",
        ),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="The folder to write.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where tokenizer.model lies, if not beside the weights."
        ),
    ] = None,
    dtype: Annotated[
        Precision | None, typer.Option(help="Store numbers so. Default: as they are.")
    ] = None,
    medsam: Annotated[
        bool | None,
        typer.Option(
            "--medsam/--no-medsam",
            help="A SAM expects MedSAM's input (each image to 0..1, squashed), or SAM's. "
            "Default: by the file's name.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FOLDER.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring weights that others trained into a folder of ours.

    Known by their keys: LLaVA-Med and LLaVA-1.5, SAM, MedSAM, SAM-Med2D, LiteMedSAM, the authors'
    MediSee, LISA, READ, and CLIP beside those that lack their vision tower. Every key and every
    shape must fit, or nothing is written. Pickles are read as weights only.

    Example: medisee convert downloads/llava-med-v1.5-mistral-7b --to models/llava-med
    """
    with needs_extra("converting a checkpoint", "torch"):
        from medisee.model.convert import convert as run
    with progress().status("Reading ...") as status:
        done = run(
            sources,
            to,
            tokenizer=tokenizer,
            dtype=None if dtype is None else dtype.value,
            medsam=medsam,
            overwrite=overwrite,
            progress=lambda step: status.update(step),
        )
    if as_json:
        print_json({"folder": str(to), **vars(done)})
    else:
        _show(done, to)


def _show(done: Conversion, folder: Path) -> None:
    print_text(f"Recognised {' and '.join(done.titles)}.")
    size, millions = human_bytes(folder_size(folder)), done.parameters / 1e6
    print_text(f"Wrote {done.weights:,} weights ({millions:,.1f} M numbers, {size}) to {folder}.")
    for note in done.notes:
        print_text(f"! {note}", "yellow")
