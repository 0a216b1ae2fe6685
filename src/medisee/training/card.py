"""The model card: what a model is, what it learned from, how well it does, what it may be used for.

All figures come from a report of `medisee evaluate` on the test split; none is typed by hand.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..data.sa_med2d import Index
from ..evaluation.summary import figures_table, plain_table, refusal_line

HEAD = """---
license: cc-by-nc-sa-4.0
library_name: medisee
tags: [medical, segmentation, detection, visual-question-answering]
datasets:
{datasets}
---

# MediSee nano

A small model for medical reasoning segmentation and detection: it reads a question about a
medical image and answers with a mask, a box and a sentence, or refuses. LiteMedSAM's image encoder
(Apache-2.0) serves both the mask decoder and an 8-layer language model cut from
SmolLM2-135M-Instruct (Apache-2.0).

**Research tool, not a medical device.** Never base a diagnosis or a treatment on it.

The weights carry **CC BY-NC-SA 4.0**: some of the images they learned from do. The code is
Apache-2.0.
"""


def write_card(
    folder: Path, index: Index, report: Path, plain: dict[str, Path], note: str = ""
) -> None:
    """Writes `README.md` and the test scores in `targets.json` of a model folder.

    Args:
        index: the data set that the model was trained and tested on.
        report: `report.json` of the model on the test split.
        plain: reports of the plain comparisons, by their name in `PLAIN`.
        note: what a reader of the figures must know, such as how often the split was scored.
    """
    found = json.loads(report.read_text(encoding="utf-8"))
    others = {n: json.loads(p.read_text(encoding="utf-8")) for n, p in plain.items()}
    parts = [
        _head(index),
        "## Figures\n",
        f"On the test split, free-running ({found['images']} images, {found['pairs']} questions); "
        "per cent, 95 % intervals by bootstrap over images.\n",
        f"{note}\n",
        figures_table(found, others),
        refusal_line(found),
        "\n## By modality (referring)\n",
        plain_table("modality", found["modality"]["referring"]),
        "\n## By category (referring)\n",
        plain_table("category", found["category"]["referring"]),
        "\n## Training data\n",
        _sources(index),
        "\n## Limits\n",
        LIMITS,
    ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")
    _score_targets(folder / "targets.json", found["category"]["referring"])


LIMITS = """\
Small targets, thin structures and many-instance targets (vessels, microaneurysms, nuclei) are
segmented poorly. Single levels of the spine, ribs and sides are confused more often than kinds of
organs. Categories with fewer than six images were seen in training only. A question in words far
from any it has read may be answered with another structure of the same kind of image. The score is
calibrated on images from the same sources; on other images it says less. Explanations are chosen,
token by token, among sentences that were checked by hand (`phrases.json`); the choice can be wrong.
"""


def _head(index: Index) -> str:
    sources = sorted({record.source for record in index.records("train")})
    return HEAD.format(datasets="\n".join(f"  - {source}" for source in sources))


def _sources(index: Index) -> str:
    """One row per source: licence as stated there, patients and images trained on."""
    patients: dict[str, set[str]] = defaultdict(set)
    images: dict[str, int] = defaultdict(int)
    licences: dict[str, str] = {}
    for record in index.records("train"):
        patients[record.source].add(record.patient)
        images[record.source] += 1
        licences[record.source] = record.licence
    lines = [
        "| source | patients | images | licence as stated there |",
        "| --- | --- | --- | --- |",
    ]
    for source in sorted(images, key=lambda name: -images[name]):
        count = f"{len(patients[source])} | {images[source]}"
        lines.append(f"| {source} | {count} | {licences[source]} |")
    return "\n".join(lines)


def _score_targets(path: Path, categories: dict[str, Any]) -> None:
    targets = json.loads(path.read_text(encoding="utf-8"))
    for name, figures in categories.items():
        if name in targets:
            dice = figures["dice"]
            targets[name] |= {"n_test": dice["n"], "dice": round(dice["value"], 4)}
    path.write_text(json.dumps(targets, indent=1) + "\n", encoding="utf-8")
