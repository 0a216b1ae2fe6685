"""Fits the heads' first layers to the states that the language model really emits.

The heads learned from fixed category states; the language model emits them shrunk and with noise
of its own. Ridge regression from the emitted fused states to the fixed ones is the best linear
correction, and it is absorbed into the linear layers that read h_det and h_seg, so that nothing
is added to the model. It costs a few thousand forward passes and one linear system.
"""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from .loop import MetricsLog, load_checkpoint, save_checkpoint, trainable
from .recipe import Recipe, Stage
from .tasks import Context, Language

ALIGNED = ("projector", "box_decoder")
"""Parameters that this stage writes, and so what its checkpoint holds."""


def run_align(context: Context, recipe: Recipe, stage: Stage, folder: Path) -> None:
    """Collects `stage.steps` batches of emitted states and corrects the heads, once."""
    stage = stage.model_copy(update={"rates": dict.fromkeys(ALIGNED, 1.0)})
    trainable(context.model, stage)
    if load_checkpoint(context.model, None, folder):
        return
    context.model.eval()
    emitted, wanted = _collect(context, stage)
    with torch.no_grad():
        seg, det = context.model.fusion(emitted)
        seg_goal, det_goal = context.model.fusion(wanted)
        _absorb(context.model.projector.layers[0], seg, seg_goal)
        _absorb(_reader(context), det, det_goal)
    metrics = Language(context, stage).validate()
    MetricsLog(folder / "metrics.jsonl").write(stage.name, stage.steps, 0.0, {}, metrics)
    optimizer = torch.optim.AdamW(trainable(context.model, stage))
    save_checkpoint(context.model, optimizer, folder, stage.steps)


@torch.inference_mode()
def _collect(context: Context, stage: Stage) -> tuple[Tensor, Tensor]:
    """Emitted and fixed candidate states (T, n, d) of training questions."""
    task = Language(context, stage)
    emitted, labels = [], []
    for step in track(range(stage.steps), stage.name, console=Console(stderr=True)):
        with torch.autocast("cpu", torch.bfloat16):
            states, numbers = task.emitted(step)
        emitted.append(states.float())
        labels.append(numbers)
    return torch.cat(emitted), context.states[torch.cat(labels)]


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
    matrix = torch.linalg.solve(gram + scale * torch.eye(len(gram), dtype=gram.dtype), x.T @ y).T
    offset = y_mean - matrix @ x_mean
    weight = layer.weight.double()
    layer.bias.add_((weight @ offset).to(layer.bias.dtype))
    layer.weight.copy_(weight @ matrix)
