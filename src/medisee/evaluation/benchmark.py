"""The benchmark page: tables, plots and what they mean, from the folders of finished runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medisee.data.sa_med2d import Index
from medisee.evaluation import plots
from medisee.evaluation.comparing import comparison_table
from medisee.evaluation.pairs import Selection, make_pairs
from medisee.evaluation.predictions import read_lines
from medisee.evaluation.summary import PLAIN, figures_table, plain_table, refusal_line
from medisee.evaluation.tables import build_table
from medisee.structures import decode_rle

__all__ = ["Difference", "category_table", "compare_with_text", "draw_examples", "write_page"]

Report = Mapping[str, Any]
TOLD = {"category-mean", "median-box", "centred-box", "litemedsam-true-box"}
"""Systems that are told the answer key's labels."""
PICTURES = "images/benchmark"
"""Where a page's plots lie, beside it."""


def write_page(
    folder: Path,
    nano: Report,
    others: Mapping[str, Report],
    comparison: Sequence[Any],
    probes: Mapping[str, str],
    readiness: Mapping[str, str],
) -> Path:
    """Writes `benchmark.md` and its plots (no image of the data set) and gives its path.

    nano, others: `report.json` of the model and of the plain comparisons, by their key; those in
    `PLAIN` stand in the main table. comparison: of nano with each. probes: name -> table.
    """
    pictures = folder / PICTURES
    _draw(pictures, nano, others)
    main = {name: others[name] for name in PLAIN if name in others}
    rest = {
        f"{report['about'].get('name', name)}, {kind}": _own_words(report, figures)
        for name, report in others.items()
        if name not in PLAIN
        for kind, figures in report["kinds"].items()
    }
    parts = [
        HEAD.format(split=nano["split"], images=nano["images"], pairs=nano["pairs"]),
        figures_table(nano, main),
        refusal_line(nano),
        "## Other comparisons\n",
        plain_table("", rest) if rest else "None was run.",
        "\n## Paired differences\n",
        "Nano minus each comparison, on the same questions; p by swapping the two at random within "
        "images, corrected for all tests of the table (Holm).\n",
        comparison_table(comparison),
        *_by(nano, "length"),
        *_by(nano, "modality"),
        f"## By category\n\n![Dice by category]({PICTURES}/categories.png)\n",
        _worst(nano),
        f"\n## How sure it is\n\n![Risk against coverage]({PICTURES}/risk-coverage.png)\n",
        _sureness(nano),
        "## Probes\n",
        *probes.values(),
        "## Beside the paper\n",
        BESIDE,
        *(
            build_table(number, [("MediSee nano", nano)], readiness).to_markdown()
            for number in (1, 2, 3)
        ),
    ]
    path = folder / "benchmark.md"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    return path


HEAD = """# Benchmark of nano

Made by `medisee reproduce`; nothing here is typed by hand. Split *{split}*, {images} images,
{pairs} questions; per cent, 95 % intervals by bootstrap over images. Every system answers freely:
no reference answer is shown to it. Dice, gIoU, cIoU, box IoU and Acc@0.5 are per question (the
union of its targets); *named*: the words name every target.
"""

BESIDE = """The paper's figures were measured on other questions and, in part, other images (its
data set is not published), and by giving the model the answer's opening. They stand beside ours
for orientation and cannot be compared with them number by number. *Readiness* says how far the
program for each system is proved (`medisee bench systems`).
"""


def _own_words(report: Report, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Without `named` for a comparison that is told the label: its words are not its own."""
    told = report["about"].get("system") in TOLD
    return {name: value for name, value in figures.items() if not (told and name == "named")}


def _draw(folder: Path, nano: Report, others: Mapping[str, Report]) -> None:
    categories = nano["category"]
    names = sorted(
        categories.get("referring", {}),
        key=lambda name: -categories["referring"][name]["dice"]["value"],
    )
    kinds = {"referring": "named", "implicit": "described"}
    rows = {
        name: {
            label: categories[kind][name]["dice"]
            for kind, label in kinds.items()
            if name in categories.get(kind, {})
        }
        for name in names
    }
    plots.bars(folder / "categories.png", "Nano, Dice by category", rows, "Dice, per cent")
    curves = {
        report["model"]: report["risk_coverage"]["curve"]
        for report in (nano, *others.values())
        if report["risk_coverage"] and len(report["risk_coverage"]["curve"]) > 1
    }
    if curves:
        plots.risk_coverage(folder / "risk-coverage.png", curves)


def _by(report: Report, field: str) -> Iterator[str]:
    for kind, groups in report[field].items():
        if groups:
            yield f"## By {field} ({kind})\n\n{plain_table(field, groups)}\n"


def category_table(report: Report) -> str:
    """Every category asked for by name, as the model card has it."""
    groups = report["category"].get("referring", {})
    return f"## By category (referring)\n\n{plain_table('category', groups)}\n"


def _worst(report: Report) -> str:
    """The categories of the lowest Dice, of those asked about on at least three images."""
    groups = {
        name: figures
        for name, figures in report["category"].get("referring", {}).items()
        if figures["dice"]["n"] >= 3
    }
    worst = sorted(groups, key=lambda name: groups[name]["dice"]["value"])[:10]
    table = plain_table("category", {name: groups[name] for name in worst})
    return f"The ten worst, asked for by name on at least three images:\n\n{table}"


def _sureness(report: Report) -> str:
    curve = report["risk_coverage"]
    cost = report["cost"]
    lines = []
    if curve:
        lines.append(f"Area under the curve: {100 * curve['area']:.1f} % (lower is better).")
    if cost["seconds_mean"] is not None:
        lines.append(
            f"On the machine that made this page a question took {cost['seconds_mean']:.2f} s "
            f"(5 % took more than {cost['seconds_p95']:.2f} s); the process held at most "
            f"{cost['memory_mb'] or 0:.0f} MB."
        )
    return "\n".join([*lines, ""])


def draw_examples(
    path: Path, index: Index, selection: Selection, report: Report, predictions: Path
) -> None:
    """Best, median and worst answers to implicit and referring questions, as a picture.

    It shows images of the data set, so it belongs beside the runs and not into a repository.
    """
    pairs = {pair.id: pair for pair in make_pairs(index, selection)}
    answers = {line["id"]: line for _, line in read_lines(predictions) if line is not None}
    rows = {}
    for kind in ("implicit", "referring"):
        found = sorted(
            (row for row in report["rows"] if row["kind"] == kind and not row["refused"]),
            key=lambda row: -row["dice"],
        )
        middle = len(found) // 2
        for name, of in (
            ("best", found[:5]), ("median", found[max(middle - 2, 0) : middle + 3]),
            ("worst", found[-5:]),
        ):  # fmt: skip
            if of:
                rows[f"{kind}, {name}"] = [
                    _panel(index, pairs[row["id"]], answers[row["id"]], row) for row in of
                ]
    if rows:
        plots.example_grid(path, rows)


def _panel(index: Index, pair: Any, answer: Any, row: Mapping[str, Any]) -> plots.Panel:
    pixels = index.load_image(pair.image)
    masks = [decode_rle(finding["mask"]) for finding in answer["findings"]]
    found = np.logical_or.reduce([np.zeros(pixels.shape[:2], bool), *masks])
    return f"{pair.category}: {100 * row['dice']:.0f}", pixels, index.load_union(pair.masks), found


# ---- what is written, and what was measured ------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A cell of a table that says something else than what was measured."""

    row: str
    column: str
    written: str
    measured: str


def compare_with_text(written: str, measured: str) -> tuple[int, list[Difference]]:
    """How many cells both texts' tables have in common, and which of them differ.

    Cells are told apart by the word in brackets of the heading above, and the names of row and
    column; the intervals follow from the figures and are not compared, and what only one of the
    texts has is left out.
    """
    ours, theirs = dict(_cells(measured)), dict(_cells(written))
    common = [key for key in theirs if key in ours]
    different = [
        Difference(*key[1:3], theirs[key], ours[key])
        for key in common
        if _figure(theirs[key]) != _figure(ours[key])
    ]
    return len(common), different


def _cells(text: str) -> Iterator[tuple[tuple[str, str, str, int], str]]:
    """(kind of question, row, column, how often these were there before) and text of each cell."""
    head: list[str] = []
    kind = ""
    seen: Counter[tuple[str, str, str]] = Counter()
    for line in text.splitlines():
        if line.startswith("#"):
            kind = "".join(re.findall(r"\((\w+)\)$", line))
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not head:
            head = cells
        elif not set(line) <= set("|- :"):
            for column, cell in zip(head[1:], cells[1:], strict=False):
                key = (kind, cells[0], column)
                yield (*key, seen[key]), cell
                seen[key] += 1


def _figure(cell: str) -> str:
    return re.sub(r"\s*\(.*\)$", "", cell)
