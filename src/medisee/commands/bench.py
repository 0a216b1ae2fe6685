"""`medisee bench`: every system in one harness; run, score, tables, what else they are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medisee.commands.asking import check_folder
from medisee.commands.options import DeviceOption, JsonOption
from medisee.commands.screen import (
    output,
    print_json,
    print_text,
    print_written,
    spinner,
)
from medisee.errors import InputError

if TYPE_CHECKING:
    from medisee.data.sa_med2d import Index
    from medisee.evaluation import Model, Report, Selection
    from medisee.evaluation.probes import Probe

__all__ = [
    "contamination",
    "prepare",
    "probe",
    "run",
    "score",
    "select",
    "show_report",
    "systems",
    "table",
]

DataArgument = Annotated[
    Path, typer.Argument(metavar="DATA", help="Folder in SA-Med2D's layout with index.jsonl.")
]
DataOption = Annotated[
    Path, typer.Option("--data", help="Folder in SA-Med2D's layout with index.jsonl.")
]
QuestionsOption = Annotated[
    Path | None,
    typer.Option(
        help="Question file or question-answer set (JSONL). Default: every label, by name."
    ),
]
SplitOption = Annotated[str, typer.Option(help="Part of the data set: val or test.")]
LimitOption = Annotated[
    int, typer.Option(min=0, help="Images for each label or question; 0 for all.")
]
ExplainOption = Annotated[
    bool, typer.Option("--explain/--no-explain", help="Score the words too, or masks alone.")
]
SystemOption = Annotated[
    str, typer.Option(help="Key of a system (medisee bench systems), or FILE.py:FUNCTION.")
]
SettingsOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the system.")
]


class Format(str, Enum):
    """How a table is written."""

    MARKDOWN = "markdown"
    CSV = "csv"
    LATEX = "latex"


def systems(as_json: JsonOption = False) -> None:
    """List every system of the paper and the plain comparisons, and how far each is proved.

    Readiness: verified (official weights ran and met a published figure), parity (equals the
    official implementation on random weights), keys (the official key list loads; run tested on
    random weights), adapter (drives another's process, service or transformers model; tested
    against a double of it),
    untested, own (a comparison of ours).

    Example: medisee bench systems --json
    """
    from medisee.evaluation.systems import SYSTEMS

    rows = [system.to_dict() for system in SYSTEMS]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print_text(f"{row['key']}  ({row['readiness']})", "bold", wrap=False)
        print_text(f"    {row['name']}", wrap=False)
        print_text(f"    needs {row['needs']}", wrap=False)
        print_text(f"    licence of code and weights: {row['licence']}", wrap=False)


def run(
    system: SystemOption,
    data: DataOption,
    questions: QuestionsOption = None,
    split: SplitOption = "test",
    limit: LimitOption = 4,
    settings: SettingsOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder. Default: bench/SYSTEM.")
    ] = None,
    explain: ExplainOption = True,
    workers: Annotated[int, typer.Option(min=1, help="Processes that ask side by side.")] = 1,
    ray: Annotated[
        str, typer.Option(help="Address of a Ray cluster that asks: auto, ray://..., local.")
    ] = "",
    device: DeviceOption = None,
) -> None:
    """Ask a system all questions, into FOLDER/predictions.jsonl (masks as COCO RLE).

    A run that was stopped goes on where it was. No reference answer is ever shown to a system.

    Example: medisee bench run --system nano --data data --split val
    """
    from medisee.evaluation import PREDICTIONS, predict

    folder = out or Path("bench") / Path(system.partition(":")[0]).stem
    check_folder(folder)
    selection = select(questions, split, limit)
    make, index, about = prepare(system, _parsed(settings), data, selection, device)
    predict(make, index, selection, folder / PREDICTIONS, explain, about, workers, ray)
    print_written([folder / PREDICTIONS])


def score(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folder or file of predictions.")
    ],
    data: DataOption,
    questions: QuestionsOption = None,
    surface: Annotated[
        float | None,
        typer.Option(help="Adds the normalised surface distance at so many mm (needs --spacings)."),
    ] = None,
    spacings: Annotated[
        Path | None,
        typer.Option(help="JSON of image file -> [row, column] mm a pixel, for --surface."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn predictions into figures: no model is needed; report.json and report.md go beside them.

    With several runs, the first is compared with each other one on the same questions.

    Example: medisee bench score bench/nano bench/category-mean --data data
    """
    from medisee.data.sa_med2d import Index
    from medisee.evaluation import compare_systems, comparison_table
    from medisee.evaluation import score as score_file

    paths = [_predictions(path) for path in runs]
    index, known = Index.open(data), _spacings(spacings)
    reports = []
    for path in paths:
        with spinner(f"Scoring {path} ..."):
            reports.append(score_file(path, index, questions, surface, known))
        reports[-1].save(path.parent)
    comparison = compare_systems(reports) if len(reports) > 1 else []
    if as_json:
        print_json([report.to_dict() for report in reports])
        return
    for report, path in zip(reports, paths, strict=True):
        show_report(report, path.parent)
    if comparison:
        text = comparison_table(comparison)
        (paths[0].parent / "comparison.md").write_text(text, encoding="utf-8")
        _show(text)


def table(
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="Table of the paper: 1 to 6.")],
    reports: Annotated[
        list[str] | None,
        typer.Option("--report", metavar="[ROW=]PATH", help="Measured figures; may be repeated."),
    ] = None,
    format: Annotated[Format, typer.Option(help="How it is written.")] = Format.MARKDOWN,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write.")] = None,
) -> None:
    """Print a table of the paper: published figures, and measured ones in their own columns.

    A report joins the row of its system, or the one named by ROW= ("2 soft 1024" in table 4,
    "text+box" in table 5, "segmenter: SAM" in table 6); other names become rows of their own.

    Example: medisee bench table 1 --report bench/nano --format latex
    """
    from medisee.evaluation.systems import SYSTEMS
    from medisee.evaluation.tables import FORMATS, build_table

    readiness = {system.name: system.readiness.value for system in SYSTEMS}
    built = build_table(number, map(_named_report, reports or []), readiness)
    text = FORMATS[format.value](built)
    if out is None:
        print_text(text, wrap=False)
    else:
        out.write_text(text, encoding="utf-8")
        print_written([out])


def contamination(
    data: DataOption,
    train: Annotated[
        Path | None, typer.Option(help="Data folder that was trained on. Default: the same.")
    ] = None,
    train_split: Annotated[str, typer.Option(help="Split that was trained on.")] = "train",
    split: SplitOption = "test",
) -> None:
    """Look for test images that a system was trained on: the same, near-duplicates, patients.

    Example: medisee bench contamination --data data --train other-data
    """
    from medisee.data.sa_med2d import Index
    from medisee.evaluation.contamination import check_contamination

    tested = Index.open(data)
    with spinner("Comparing the images ..."):
        found = check_contamination(Index.open(train or data), tested, train_split, split)
    print_text(found.to_markdown(), wrap=False)


def show_report(report: Report, folder: Path, as_json: bool = False) -> None:
    """The tables on the screen, or all of it as JSON."""
    if as_json:
        print_json(report.to_dict())
    else:
        _show(report.to_markdown())
        print_text(f"Report and predictions are in {folder}.")


def probe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="look, wording, refusal or rounds.")],
    system: SystemOption,
    data: DataOption,
    split: SplitOption = "val",
    count: Annotated[int, typer.Option(min=1, help="Questions before their variants.")] = 60,
    settings: SettingsOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder. Default: bench/probe-NAME.")
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask what plain scores do not tell, variant by variant, with a figure.

    look: target erased, equal area elsewhere erased, noise, another patient's image. wording:
    paraphrase, typos, word order, tone, pressure. refusal: absent, wrong kind of image, nonsense,
    a picture that is not medical. rounds: several targets, questions that refer back.

    Example: medisee bench probe look --system nano --data data
    """
    from medisee.data.sa_med2d import Index
    from medisee.evaluation import PREDICTIONS, Selection, evaluate
    from medisee.evaluation.probes import SPLIT, make_probe, summarise

    folder = out or Path("bench") / f"probe-{name}"
    check_folder(folder)
    index, questions = make_probe(name, Index.open(data), split, count, 0, folder)
    selection = Selection(SPLIT, questions, None)
    make, index, about = prepare(system, _parsed(settings), index.root, selection, device)
    report = evaluate(make, index, selection, folder, about=about)
    found = summarise(name, report, folder / PREDICTIONS)
    write_probe(found, folder)
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found.to_markdown())
        print_text(f"Answers, table and figure are in {folder}.")


def write_probe(found: Probe, folder: Path) -> None:
    """Table, figures as JSON, and the picture of a probe."""
    import json

    from medisee.evaluation.plots import bars

    (folder / "probe.md").write_text(found.to_markdown(), encoding="utf-8")
    text = json.dumps(found.to_dict(), indent=1)
    (folder / "probe.json").write_text(text + "\n", encoding="utf-8")
    shown = {
        row.variant: {
            figure: asdict(value)
            for figure, value in (
                ("answered", row.answered), ("Dice", row.dice), ("agreement", row.agreement)
            )
            if value is not None
        }
        for row in found.rows
    }  # fmt: skip
    bars(folder / "probe.png", f"{found.question} {found.model}", shown, "per cent")


def prepare(
    system: str, settings: Mapping[str, str], data: Path, selection: Selection, device: str | None
) -> tuple[Callable[[], Model], Index, dict[str, Any]]:
    """What makes the system, the data set, and what the report shall say of the system."""
    from medisee.data.sa_med2d import Index
    from medisee.evaluation import make_pairs
    from medisee.evaluation.systems import Setup, find_system, make_system

    row, index = find_system(system), Index.open(data)
    setup = Setup(index, selection.split, make_pairs(index, selection), device)
    about = {"system": row.key, "name": row.name, "readiness": row.readiness.value}
    make = partial(make_system, system, setup, settings)
    return make, index, {**about, "settings": dict(settings)}


def select(questions: Path | None, split: str, limit: int) -> Selection:
    """The selection that the options tell."""
    from medisee.evaluation import Selection

    return Selection(split, questions, limit or None)


def _parsed(settings: list[str] | None) -> dict[str, str]:
    pairs = [each.partition("=") for each in settings or []]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise InputError(f"--set {wrong[0]}: write NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _predictions(path: Path) -> Path:
    from medisee.evaluation import PREDICTIONS

    return path / PREDICTIONS if path.is_dir() else path


def _spacings(path: Path | None) -> dict[str, tuple[float, float]]:
    import json

    if path is None:
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {str(image): (float(row), float(column)) for image, (row, column) in entries.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: must map each image file to [row, column] in mm") from error


def _named_report(entry: str) -> tuple[str, Any]:
    from medisee.evaluation.tables import read_report

    row, _, path = entry.rpartition("=")
    report = read_report(Path(path))
    return row or report["about"].get("name") or report["model"], report


def _show(markdown: str) -> None:
    from rich.markdown import Markdown

    output().print(Markdown(markdown))
