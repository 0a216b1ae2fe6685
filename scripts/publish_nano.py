"""Puts a trained and tested model into the package: weights, graphs, card, README's figures.

    python scripts/publish_nano.py runs/nano/model --data DATA --report evaluation/report.json \\
        --plain true-boxes=comparisons/true-boxes/report.json ...
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from medisee.data.sa_med2d import Index
from medisee.evaluation.summary import figures_table, refusal_line
from medisee.runtime.compile import compile_graphs
from medisee.training.card import write_card

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"


def main() -> None:
    """Copies, writes the card, and replaces the README's figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--plain", action="append", default=[], metavar="NAME=REPORT")
    parser.add_argument("--note", default="", help="what a reader of the figures must know")
    arguments = parser.parse_args()
    plain = {name: Path(path) for name, path in (entry.split("=") for entry in arguments.plain)}
    target = ROOT / "src" / "medisee" / "nano"
    if arguments.model.resolve() != target:
        shutil.copytree(arguments.model, target, dirs_exist_ok=True)
    compile_graphs(target)
    write_card(target, Index.open(arguments.data), arguments.report, plain, arguments.note)
    _figures_into(ROOT / "README.md", arguments.report, plain, arguments.note)


def _figures_into(readme: Path, report: Path, plain: dict[str, Path], note: str) -> None:
    found = json.loads(report.read_text(encoding="utf-8"))
    others = {name: json.loads(p.read_text(encoding="utf-8")) for name, p in plain.items()}
    text = readme.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    figures = (
        f"On the test split ({found['images']} images, {found['pairs']} questions in wordings "
        "never trained on; split by patient, by image where a source does not tell patients "
        f"apart); per cent, 95 % intervals. {note}\n\n"
        f"{figures_table(found, others)}\n{refusal_line(found)}"
    )
    readme.write_text(f"{before}{BEGIN}\n{figures}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
