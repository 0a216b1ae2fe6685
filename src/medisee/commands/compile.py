"""`medisee compile`: graphs for the runtime without torch, checked against torch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from medisee.commands.options import JsonOption
from medisee.commands.screen import print_json, print_text, spinner
from medisee.extras import needs_extra
from medisee.hub import find_model

__all__ = ["compile_model"]


def compile_model(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder of a trained nano-like model, or nano.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Compare on this data set's val split too, in SA-Med2D's layout."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a model run without torch, and tell how close that comes to torch.

    Writes three graphs beside the model's weights, which both runtimes then read; afterwards the
    model answers through ONNX Runtime wherever it runs on the CPU.

    Example: medisee compile runs/nano/model
    """
    found = find_model(folder)
    with needs_extra("compiling a model", "compile"):
        from medisee.runtime.compile import compile_graphs
    with spinner("Writing graphs ..."):
        written = compile_graphs(found)
    with spinner("Comparing with torch ..."):
        from medisee.evaluation import compare
        from medisee.predictor import load

        parity = compare(load(str(found), runtime="torch"), load(str(found)), _asked(data))
    if as_json:
        print_json({"graphs": [str(path) for path in written], "parity": vars(parity)})
    else:
        print_text(f"Wrote {', '.join(path.name for path in written)} to {found}.")
        print_text(f"Against torch: {parity.to_text()}.")


def _asked(data: Path | None) -> Iterator[tuple[Any, list[str]]]:
    """Images and questions: the examples, and one image for each label of the val split."""
    from medisee.data.sa_med2d import Index
    from medisee.evaluation import Selection, make_pairs
    from medisee.examples import list_examples

    for example in list_examples():
        yield f"example:{example.name}", [example.question, "What is the weather like?"]
    if data is not None:
        index = Index.open(data)
        for image, pairs in groupby(
            make_pairs(index, Selection("val", limit=1)), key=lambda p: p.image
        ):
            yield index.root / image, [pair.question for pair in pairs]
