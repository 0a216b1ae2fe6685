"""`medisee data export`: a built set in the form in which others read it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from medisee.commands.options import JsonOption
from medisee.commands.screen import print_json, print_text, progress

__all__ = ["export_data"]


class Form(str, Enum):
    """What an export can be."""

    PARQUET = "parquet"
    DATASETS = "datasets"
    COCO = "coco"
    AUTHORS = "authors"


def export_data(
    folder: Annotated[Path, typer.Argument(metavar="SET", help="Folder of a built set.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="New folder to write.")],
    form: Annotated[
        Form,
        typer.Option(
            "--as",
            help="parquet: the records alone. datasets: a folder for datasets.load_dataset. "
            "coco: COCO with run lengths and the questions. authors: one line and one mask for "
            "each implicit question.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA", help="The images that the set was built from; all but parquet need it."
        ),
    ] = None,
    redistributable: Annotated[
        bool,
        typer.Option(
            "--redistributable",
            help="Leave out images whose licence does not allow to pass them on.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a built set in another form, with data card (README.md) and Croissant metadata.

    FOLDER appears only when it is complete.

    Example: medisee data export mlmr-sd --to shared --as datasets --data data --redistributable
    """
    from rich.progress import Progress

    from medisee.data.exporters import export_set

    with Progress(console=progress(), transient=True) as bar:
        task = bar.add_task("Exporting", total=None)
        stats = export_set(
            folder,
            to,
            form.value,
            data=data,
            redistributable=redistributable,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        print_json(stats.to_dict())
        return
    records, images = sum(stats.records.values()), sum(stats.images.values())
    print_text(f"{records:,} records about {images:,} images are in {to}.")
    for reason, counts in stats.left_out.items() if redistributable else ():
        if "passed on" in reason:
            print_text(f"Left out: {counts['files']:,} images, since {reason}.")
