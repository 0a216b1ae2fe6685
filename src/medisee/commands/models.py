"""`medisee models`: the models on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medisee.commands.options import JsonOption
from medisee.commands.screen import (
    human_bytes,
    output,
    plain_table,
    print_json,
    print_text,
    progress,
)
from medisee.extras import needs_extra
from medisee.hub import (
    ModelEntry,
    cache_folder,
    clear_cache,
    find_model,
    folder_size,
    known_models,
)

__all__ = ["make_random", "models"]


def models(
    context: typer.Context,
    clear: Annotated[
        bool, typer.Option("--clear-cache", help="Delete downloaded weights and kept features.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the models on this machine: licence, size, folder; and the cache folder.

    The licence is that of the weights: it binds whoever uses the model's answers.
    """
    if context.invoked_subcommand is not None:
        return
    freed = clear_cache() if clear else None
    entries = known_models()
    if as_json:
        print_json(_as_json(entries, freed))
        return
    output().print(plain_table(["model", "licence", "size", "folder"], map(_row, entries), {2}))
    print_text(f"\nCache: {cache_folder()}, {human_bytes(folder_size(cache_folder()))}")
    if freed is not None:
        print_text(f"Cleared {human_bytes(freed)}.")


def make_random(
    like: Annotated[str, typer.Option(help="Whose shape: llava-med-7b or lisa-7b.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="The folder to write.")],
    scale: Annotated[float, typer.Option(help="Share of its numbers, above 0 up to 1.")] = 1.0,
    tokenizer: Annotated[str, typer.Option(help="Model whose tokenizer it takes.")] = "nano",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FOLDER.")] = False,
) -> None:
    """Write a model with random weights in the shape of a real one.

    It answers nonsense, at the cost in memory and time of the real one.

    Example: medisee models make-random --like llava-med-7b --scale 0.1 --to random-700m
    """
    with needs_extra("making a model", "torch"):
        from medisee.model.make_random import make_random as make
    with progress().status("Writing ...") as status:
        numbers = make(
            like, to, find_model(tokenizer), scale=scale, overwrite=overwrite,
            progress=lambda step: status.update(step),
        )  # fmt: skip
    size = human_bytes(folder_size(to))
    print_text(f"Wrote {numbers / 1e6:,.0f} M random numbers ({size}) to {to}.")


def _row(entry: ModelEntry) -> list[str]:
    size = human_bytes(entry.size) if entry.ready else "no weights"
    return [entry.name, entry.licence, size, str(entry.folder)]


def _as_json(entries: list[ModelEntry], freed: int | None) -> dict[str, object]:
    listed = [
        {
            "name": entry.name,
            "licence": entry.licence,
            "bytes": entry.size,
            "ready": entry.ready,
            "folder": str(entry.folder),
        }
        for entry in entries
    ]
    cache = {"folder": str(cache_folder()), "bytes": folder_size(cache_folder()), "freed": freed}
    return {"models": listed, "cache": cache}
