"""`medisee examples`: real images for a first try."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from medisee.commands.asking import check_folder
from medisee.commands.options import JsonOption
from medisee.commands.screen import print_json, print_text, print_written
from medisee.errors import InputError

__all__ = ["examples"]


def examples(
    write: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the images as PNG to this folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List real images that need no file at hand, with a question for each.

    They come with pydicom. Wherever an image is asked for, example:NAME stands for one.
    """
    from medisee.examples import list_examples

    listed = list_examples()
    if write is not None:
        check_folder(write)
        print_written([_write(example.name, write) for example in listed])
    elif as_json:
        print_json([asdict(example) for example in listed])
    else:
        for example in listed:
            print_text(f"example:{example.name}", "bold")
            print_text(f"  {example.description}")
            command = f'medisee ask example:{example.name} "{example.question}"'
            print_text(f"  {command}\n", "cyan", wrap=False)


def _write(name: str, folder: Path) -> Path:
    """Write one example's display rendering; an existing file is kept."""
    from PIL import Image

    from medisee.examples import open_example

    path = folder / f"{name}.png"
    if path.exists():
        raise InputError(f"{path}: is there already; choose another folder")
    picture = Image.fromarray(open_example(name).display)
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path
