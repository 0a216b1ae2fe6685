"""`medisee finetune`: teach a model one's own categories from a few images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medisee.commands.data_import import Classes, Label
from medisee.commands.screen import print_text, spinner
from medisee.entities import read_entities
from medisee.errors import InputError
from medisee.extras import needs_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medisee.structures import Answer
    from medisee.training.own import OwnData

__all__ = ["finetune"]

_LAYOUT = ("index.jsonl", "SAMed2D_v1.json")


def finetune(
    data: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Images with masks: pairs, COCO, or SA-Med2D-20M's layout.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the run; the model is in DIR/model.")
    ] = Path("finetuned"),
    label: Label = "",
    classes: Classes = None,
    describe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml",
            help="What the names mean, in the form of the package's entities/*.yaml.",
        ),
    ] = None,
    init: Annotated[
        str, typer.Option(metavar="MODEL", help="Start from this model, like nano.")
    ] = "nano",
    split: Annotated[
        str, typer.Option(help="Use this split of the data only. Default: all but test.")
    ] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run in DIR stopped.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of the search for where the categories are.")
    ] = 60,
) -> None:
    """Teach a model your own categories from some dozen images with masks.

    What the model knew stays: none of its weights is touched, only the states are searched by
    which it will know your categories. Images are held out (by patient, where they are known) to
    tell how well it went. The new model is ready for --model.

    Example: medisee finetune --data scans --label "fetal head" --out finetuned
    """
    with needs_extra("fine-tuning", "train"):
        from medisee.training.finetune import Settings
        from medisee.training.finetune import finetune as run
        from medisee.training.own import read_own
    _check_fresh(out, resume)
    described = () if describe is None else read_entities(describe)
    own = read_own(_in_layout(data, out, label, classes), split, described)
    print_text(_told(own))
    folder = run(own, Settings(init, out, steps, threads))
    for name, before, after, count in _measured(own, init, folder):
        print_text(
            f"{name}: Dice {100 * before:.0f} before, {100 * after:.0f} now "
            f"({count} held-out images, asked for by name)."
        )
    print_text(f"The new model is in {folder}: medisee ask IMAGE QUESTION --model {folder}")


def _check_fresh(out: Path, resume: bool) -> None:
    if not resume and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} holds something already: go on with --resume, or choose another")


def _in_layout(data: Path, out: Path, label: str, classes: Path | None) -> Path:
    """The folder in SA-Med2D's layout, brought into it below `out` where it is another."""
    if any((data / name).is_file() for name in _LAYOUT):
        return data
    from medisee.data.importers import ImportOptions, import_source, read_classes

    found = read_classes(classes) if classes else {}
    import_source(data, out / "data", ImportOptions(label=label, classes=found))
    return out / "data"


def _measured(own: OwnData, init: str, folder: Path) -> Iterator[tuple[str, float, float, int]]:
    """Of each category with held-out images: mean Dice before and after, and how many they are."""
    from medisee.predictor import load

    models = [load(init), load(str(folder))]
    found: dict[str, list[list[float]]] = {label: [] for label in own.labels}
    with spinner("Measuring ..."):
        for record in own.index.records("val"):
            sessions = [model.open(own.index.load_image(record)) for model in models]
            for label in set(record.labels) & found.keys():
                truth, question = own.index.load_mask(record, label), f"Segment the {label}."
                answers = [session.ask(question, explain=False) for session in sessions]
                found[label].append([_dice(answer, truth) for answer in answers])
    for label, pairs in found.items():
        if pairs:
            before, after = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
            yield label, before, after, len(pairs)


def _dice(answer: Answer, truth: NDArray[np.bool_]) -> float:
    """Of the union of the findings; 0 for a refusal."""
    import numpy as np

    union = np.logical_or.reduce([np.zeros_like(truth), *(f.mask for f in answer.findings)])
    return float(2 * (union & truth).sum() / (union.sum() + truth.sum()))


def _told(own: OwnData) -> str:
    held_out = sum(record.split == "val" for record in own.index)
    trained = len(own.index.chosen) - held_out
    text = f"Learning {', '.join(own.labels)} from {trained} images; {held_out} are held out."
    if own.left_out:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in own.left_out.items())
        text += f" Left out: {reasons}."
    return text
