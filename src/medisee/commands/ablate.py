"""`medisee ablate`: the paper's tables 4 to 6, trained again at nano's size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medisee.commands.asking import check_folder
from medisee.commands.bench import DataArgument, prepare
from medisee.commands.screen import print_text, print_written, progress
from medisee.errors import InputError
from medisee.extras import needs_extra

if TYPE_CHECKING:
    from medisee.evaluation import Selection
    from medisee.training.ablate import Row, Settings

__all__ = ["ablate"]

UNTRAINED = "runs/untrained"
TOLD = "settings.json"
COMPOSED = 2000
"""Validation questions that those asked are drawn from."""


class TableName(str, Enum):
    """Tables of the paper that hold ablations."""

    TABLE4 = "table4"
    TABLE5 = "table5"
    TABLE6 = "table6"

    @property
    def number(self) -> int:
        """In the paper."""
        return int(self.value[-1])


def ablate(
    table: Annotated[TableName, typer.Argument(metavar="TABLE", help="table4, table5 or table6.")],
    data: DataArgument,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for all runs and tables.")
    ] = Path("ablations"),
    rows: Annotated[
        str, typer.Option(metavar="ROW,ROW", help="These rows only. Default: all that are left.")
    ] = "",
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Questions that each stage of a row sees. Default: 3000."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each stage, instead of --samples.")
    ] = None,
    init: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Untrained nano that rows start from (python -m medisee.training.nano).",
        ),
    ] = UNTRAINED,
    limit: Annotated[
        int, typer.Option(min=0, help="Questions of each category and kind; 0 for all.")
    ] = 2,
    seed: Annotated[int, typer.Option(help="Of the fresh heads and of the training.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
) -> None:
    """Train the rows of an ablation table at nano's size; write them beside the paper's figures.

    A row states only what it changes: number of candidates, fusion, prompts, box decoder, what is
    trained. Each is asked about the validation split, running freely. DIR/table4.md is written
    after each row. Rows that are there are kept, and one that was stopped goes on where it was.

    Example: medisee ablate table4 data --rows 1-single,2-soft-144 --samples 3000
    """
    with needs_extra("ablations", "train"):
        from medisee.training.ablate import Settings, check_start, choose_rows
    if samples is not None and steps is not None:
        raise InputError("--samples and --steps say the same in two ways; give one of them")
    if init == UNTRAINED and not Path(init).is_dir():
        raise InputError(
            f"there is no untrained model in {init}: make one (python -m medisee.training.nano), "
            "or name one with --init"
        )
    check_folder(out)
    keys = [key.strip() for key in rows.split(",") if key.strip()]
    chosen = choose_rows(table.number, keys)
    given = samples or (None if steps else 3000)
    settings = Settings(data, check_start(init), out, given, steps, seed, threads)
    told = _told(settings, limit)
    _check_same(out / TOLD, told)
    selection = _questions(settings, limit)
    (out / TOLD).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for number, row in enumerate(chosen, start=1):
        line = f"{table.value}, row {number} of {len(chosen)}: {row.row} ({row.what})"
        progress().print(line, style="bold", markup=False)
        _run(row, settings, selection)
        path = _write_table(table, out)
    print_text(path.read_text(encoding="utf-8"), wrap=False)
    print_written([path])


def _questions(settings: Settings, limit: int) -> Selection:
    """Implicit and referring questions on the validation split, in wordings kept from training."""
    from medisee.data.mlmr_sd import write_records
    from medisee.data.sa_med2d import Index
    from medisee.engine import compose_records
    from medisee.entities import load_entities
    from medisee.evaluation import Selection, make_pairs

    index, path = Index.open(settings.data), settings.out / "questions.jsonl"
    mix = {"referring": 0.5, "implicit": 0.5}
    if not path.is_file():
        write_records(path, compose_records(index, load_entities(), "val", COMPOSED, 0, mix))
    selection = Selection("val", path, limit or None)
    make_pairs(index, selection)  # names what is wrong before any time is spent
    return selection


def _told(settings: Settings, limit: int) -> dict[str, Any]:
    """What rows of one table must have in common."""
    from medisee.hub import weights_checksum

    return {
        "data": str(settings.data.resolve()),
        "init": weights_checksum(settings.init),
        "samples": settings.samples,
        "steps": settings.steps,
        "seed": settings.seed,
        "limit": limit,
    }


def _check_same(path: Path, told: Mapping[str, Any]) -> None:
    """Rows that were trained otherwise, or asked otherwise, do not stand in one table."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else told
    for name, value in told.items():
        if value != before.get(name):
            raise InputError(
                f"{path.parent} holds rows made with {name} = {before.get(name)}, not {value}; "
                "choose another --out"
            )


def _run(row: Row, settings: Settings, selection: Selection) -> None:
    """Trains and asks a row, where that is not done yet."""
    from medisee.evaluation import evaluate
    from medisee.training.ablate import train_row

    folder = settings.out / row.run
    if (folder / "report.json").is_file():
        progress().print("done before", style="dim")
        return
    model = train_row(row, settings)
    given = {"model": str(model), "runtime": "torch"}
    make, index, about = prepare("medisee", given, settings.data, selection, None)
    evaluate(make, index, selection, folder, explain=False, about=about)


def _write_table(table: TableName, out: Path) -> Path:
    """The table of all rows that are there."""
    from medisee.evaluation.tables import ablation_table
    from medisee.training.ablate import choose_rows

    listed = [(row.what, row.paper, _report(out / row.run)) for row in choose_rows(table.number)]
    path = out / f"{table.value}.md"
    path.write_text(ablation_table(table.number, listed).to_markdown(), encoding="utf-8")
    return path


def _report(folder: Path) -> Mapping[str, Any] | None:
    from medisee.evaluation.tables import read_report

    return read_report(folder) if (folder / "report.json").is_file() else None
