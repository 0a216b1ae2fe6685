"""`medisee reproduce`: measure again what README, model card and benchmark page say of nano."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medisee.commands.asking import check_folder
from medisee.commands.bench import DataArgument, SplitOption, prepare, write_probe
from medisee.commands.screen import print_text, print_written, progress
from medisee.errors import InputError

if TYPE_CHECKING:
    from medisee.evaluation import Report, Selection

__all__ = ["reproduce"]

COMPARISONS: dict[str, tuple[str, dict[str, str]]] = {
    "category-means": ("category-mean", {}),
    "centred-box": ("centred-box", {}),
    "median-box": ("median-box", {}),
    "retrieval": ("retrieval", {"model": "nano"}),
    "shuffled": ("shuffled", {"model": "nano"}),
}
"""Key of a run -> the system that it asks, and its settings."""

NANO: tuple[str, dict[str, str]] = ("nano", {})
PROBE_QUESTIONS = 40


def reproduce(
    data: DataArgument,
    questions: Annotated[
        Path | None, typer.Option(help="The benchmark's question file (JSONL).")
    ] = None,
    litemedsam: Annotated[
        Path | None,
        typer.Option(help="Folder of medisee convert lite_medsam.pth, for the ceiling."),
    ] = None,
    split: SplitOption = "test",
    limit: Annotated[int, typer.Option(min=1, help="Images for each label or question.")] = 2,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for all runs, tables and plots.")
    ] = Path("reproduced"),
    docs: Annotated[
        Path, typer.Option(help="Folder of the clone whose README.md and docs are compared.")
    ] = Path(),
    write: Annotated[
        bool, typer.Option("--write", help="Write docs/benchmark.md and its plots there.")
    ] = False,
) -> None:
    """Measure nano and the plain comparisons again; say where a written figure differs.

    Predict, score, compare, probe, tables, plots: all into --out, where a run that was stopped
    goes on. The figures in README.md, in the model card and in docs/benchmark.md are then set
    against the new ones. Exit code 3 when one differs.

    Example: medisee reproduce data --questions questions.jsonl
    """
    from medisee.evaluation import Selection, compare_systems
    from medisee.evaluation.benchmark import category_table

    check_folder(out)
    if write and not (docs / "docs").is_dir():
        raise InputError(f"{docs / 'docs'}: there is no such folder; name the clone with --docs")
    selection = Selection(split, questions, limit)
    runs = {"nano": NANO} | COMPARISONS
    if litemedsam is not None:
        runs["true-boxes"] = ("litemedsam-true-box", {"segmenter": str(litemedsam)})
    reports = {key: _run(key, of, data, selection, out / key) for key, of in runs.items()}
    probes = _probes(data, out)
    comparison = compare_systems(list(reports.values()))
    page = _page(out, reports, comparison, probes)
    _examples(data, selection, reports["nano"], out)
    print_written([page, out / "examples.png"])
    measured = page.read_text(encoding="utf-8") + category_table(reports["nano"].to_dict())
    different = _differences(docs, measured, out)
    if write:
        print_written([_page(docs / "docs", reports, comparison, probes)])
    if different:
        raise typer.Exit(3)


def _run(
    key: str,
    of: tuple[str, dict[str, str]],
    data: Path,
    selection: Selection,
    folder: Path,
) -> Report:
    """One system, asked and scored; the plain ones have no word to say."""
    from medisee.evaluation import evaluate

    make, index, about = prepare(*of, data, selection, None)
    progress().print(f"{key} ...", style="dim", markup=False)
    return evaluate(make, index, selection, folder, explain=True, about=about)


def _probes(data: Path, out: Path) -> dict[str, str]:
    """The table of each probe, asked of nano on the validation split."""
    from medisee.data.sa_med2d import Index
    from medisee.evaluation import PREDICTIONS, Selection, evaluate
    from medisee.evaluation.probes import PROBES, SPLIT, make_probe, summarise

    tables = {}
    for name in PROBES:
        folder = out / f"probe-{name}"
        index, questions = make_probe(name, Index.open(data), "val", PROBE_QUESTIONS, 0, folder)
        selection = Selection(SPLIT, questions, None)
        make, index, about = prepare("nano", {}, index.root, selection, None)
        report = evaluate(make, index, selection, folder, about=about)
        found = summarise(name, report, folder / PREDICTIONS)
        write_probe(found, folder)
        tables[name] = "##" + found.to_markdown()
    return tables


def _page(
    folder: Path, reports: dict[str, Report], comparison: Any, probes: dict[str, str]
) -> Path:
    from medisee.evaluation.benchmark import write_page
    from medisee.evaluation.systems import SYSTEMS

    readiness = {system.name: system.readiness.value for system in SYSTEMS}
    plain = {key: report.to_dict() for key, report in reports.items()}
    nano = plain.pop("nano")
    return write_page(folder, nano, plain, comparison, probes, readiness)


def _examples(data: Path, selection: Selection, report: Report, out: Path) -> None:
    from medisee.data.sa_med2d import Index
    from medisee.evaluation import PREDICTIONS
    from medisee.evaluation.benchmark import draw_examples

    predictions = out / "nano" / PREDICTIONS
    path = out / "examples.png"
    draw_examples(path, Index.open(data), selection, report.to_dict(), predictions)


def _differences(docs: Path, measured: str, out: Path) -> int:
    """Prints each figure that is written otherwise, and gives their number."""
    from medisee.evaluation.benchmark import compare_with_text
    from medisee.hub import SHIPPED

    texts = [docs / "README.md", SHIPPED["nano"] / "README.md", docs / "docs" / "benchmark.md"]
    found = {}
    for path in (path for path in texts if path.is_file()):
        common, different = compare_with_text(path.read_text(encoding="utf-8"), measured)
        found[str(path)] = [vars(each) for each in different]
        print_text(f"{path}: {common} figures compared, {len(different)} differ.", wrap=False)
        for each in different:
            line = f"  {each.row}, {each.column}: {each.written} written, {each.measured} measured"
            print_text(line, wrap=False)
    text = json.dumps(found, indent=1)
    (out / "differences.json").write_text(text + "\n", encoding="utf-8")
    return sum(map(len, found.values()))
