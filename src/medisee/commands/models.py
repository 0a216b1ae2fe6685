"""`medisee models`: the models on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from medisee.commands.options import JsonOption
from medisee.commands.screen import human_bytes, output, plain_table, print_json, print_text
from medisee.hub import ModelEntry, cache_folder, clear_cache, folder_size, known_models

__all__ = ["models"]


def models(
    clear: Annotated[
        bool, typer.Option("--clear-cache", help="Delete downloaded weights and kept features.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the models on this machine: licence, size, folder; and the cache folder.

    The licence is that of the weights: it binds whoever uses the model's answers.
    """
    freed = clear_cache() if clear else None
    entries = known_models()
    if as_json:
        print_json(_as_json(entries, freed))
        return
    output().print(plain_table(["model", "licence", "size", "folder"], map(_row, entries), {2}))
    print_text(f"\nCache: {cache_folder()}, {human_bytes(folder_size(cache_folder()))}")
    if freed is not None:
        print_text(f"Cleared {human_bytes(freed)}.")


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
