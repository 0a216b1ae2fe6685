"""Fits the heads to the states that the language model really emits.

The heads learned from fixed category states; the language model emits them shrunk and with noise
of its own. Ridge regression from the emitted fused states to the fixed ones is the best linear
correction, and it is absorbed into the linear layers that read h_det and h_seg. The noise goes
with `Categories.settle`, for which each category's mean emitted state is kept. It costs a few
thousand forward passes and one linear system.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from ..categories import Categories
from ..errors import DataError
from .context import Context
from .language import Language
from .loop import MetricsLog, load_checkpoint, save_checkpoint, trainable
from .recipe import Recipe, Stage

ALIGNED = ("projector", "box_decoder")
"""Parameters that this stage writes, and so what its checkpoint holds."""

SPREAD = 1.5
"""Chosen on the validation split (docs/experiments.md)."""


def run_align(context: Context, recipe: Recipe, stage: Stage, folder: Path) -> None:
    """Collects `stage.steps` batches of emitted states and corrects the heads, once."""
    stage = stage.model_copy(update={"rates": dict.fromkeys(ALIGNED, 1.0)})
    trainable(context.model, stage)
    if load_checkpoint(context.model, None, folder):
        context.categories = _known(folder)
        return
    context.model.eval()
    emitted, labels = _collect(context, stage)
    wanted = context.states[labels]
    arrays = emitted.cpu().numpy(), labels.cpu().numpy()
    context.categories = read_as_emitted(context.categories, *arrays)
    with torch.no_grad():
        seg, det = context.model.fusion(emitted)
        seg_goal, det_goal = context.model.fusion(wanted)
        _absorb(context.model.projector.layers[0], seg, seg_goal)
        _absorb(_reader(context), det, det_goal)
    metrics = Language(context, stage).validate()
    context.machine.wait_for_everyone()  # nobody takes for done what another has just written
    if context.machine.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        context.categories.save(folder)
        MetricsLog(folder / "metrics.jsonl").write(stage.name, stage.steps, 0.0, {}, metrics)
        optimizer = torch.optim.AdamW(trainable(context.model, stage))
        save_checkpoint(context.model, optimizer, folder, stage.steps)


@torch.inference_mode()
def _collect(context: Context, stage: Stage) -> tuple[Tensor, Tensor]:
    """Emitted candidate states (T, n, d) of training questions, and the labels (T,)."""
    task = Language(context, stage)
    emitted, labels = [], []
    silent = not context.machine.is_main_process
    steps = track(range(stage.steps), stage.name, console=Console(stderr=True), disable=silent)
    for step in steps:
        with torch.autocast(context.device.type, torch.bfloat16):
            states, numbers = task.emitted(step)
        emitted.append(states.float())
        labels.append(numbers)
    return torch.cat(emitted), torch.cat(labels)


def _known(folder: Path) -> Categories:
    categories = Categories.load(folder)
    if categories is None:
        raise DataError(f"{folder} holds no categories; remove it to align again")
    return categories


def read_as_emitted(
    categories: Categories, emitted: NDArray[np.float32], labels: NDArray[np.int64]
) -> Categories:
    """Categories whose heads know each one by the mean of its emitted states (T, n, d).

    The means are drawn apart by `SPREAD`: they are nearer to each other than the fixed states
    that the heads learned from. A category that was not emitted keeps its fixed state.
    """
    seen = np.unique(labels)
    means = np.stack([emitted[labels == label].mean(axis=0) for label in seen])
    middle = means.mean(axis=0)
    read = categories.states.copy()
    read[seen] = middle + SPREAD * (means - middle)
    return Categories(categories.names, categories.states, read)


def _reader(context: Context) -> nn.Linear:
    """The linear layer of the box decoder that reads h_det."""
    decoder = context.model.box_decoder
    layer = decoder.query if hasattr(decoder, "query") else decoder.mlp.layers[0]
    assert isinstance(layer, nn.Linear)
    return layer


def _absorb(layer: nn.Linear, emitted: Tensor, wanted: Tensor, ridge: float = 0.02) -> None:
    """Replaces layer(x) by layer(A x + b), where A x + b is nearest to `wanted`."""
    x_mean, y_mean = emitted.mean(dim=0).double(), wanted.mean(dim=0).double()
    x, y = emitted.double() - x_mean, wanted.double() - y_mean
    gram = x.T @ x
    scale = ridge * gram.diagonal().mean()
    unit = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    matrix = torch.linalg.solve(gram + scale * unit, x.T @ y).T
    offset = y_mean - matrix @ x_mean
    weight = layer.weight.double()
    layer.bias.add_((weight @ offset).to(layer.bias.dtype))
    layer.weight.copy_(weight @ matrix)
