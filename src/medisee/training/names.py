"""Teaches frozen heads where a new category is: only the state that they know it by is learned.

The heads read, for each category, a state of its own (`Categories.read`). Searching for the state
that makes them find the new category leaves every weight, and so every other category, as it was.
(For images and words this is textual inversion, Gal et al. 2022.) The search begins at the known
category whose boxes fit best.
"""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from ..categories import Categories
from ..model.losses import weighted_sum
from .context import Context
from .loop import MetricsLog, schedule
from .recipe import Stage
from .targets import paired_iou
from .tasks import Localise, Masks

SHOWN = 6
"""Targets of a category that tell which known one is nearest to it."""
MASKS_SHARE = 4
"""One in so many targets of a step goes through the mask decoder, too: that costs more."""


def run_names(context: Context, stage: Stage, folder: Path) -> None:
    """Searches the states of all categories that the training images show, once."""
    known = Categories.load(folder)
    if known is not None:
        context.categories = known
        return
    torch.manual_seed(context.seed)
    context.model.requires_grad_(False).eval()
    shown = sorted({target.label for target in context.train.targets})
    found = nn.Parameter(torch.stack([_start(context, label) for label in shown]))
    boxes = Localise(context, stage)
    masks = Masks(context, stage.model_copy(update={"batch": max(stage.batch // MASKS_SHARE, 1)}))
    [rate] = stage.rates.values()
    optimizer = torch.optim.Adam([found], lr=rate)
    losses: dict[str, Tensor] = {}
    for step in track(range(stage.steps), stage.name, console=Console(stderr=True)):
        boxes.read = masks.read = context.read.index_copy(0, torch.tensor(shown), found)
        progress = step / stage.steps
        losses = boxes.losses(step, progress) | masks.losses(step, progress)
        optimizer.zero_grad()
        weighted_sum(losses, stage.weights).backward()
        optimizer.param_groups[0]["lr"] = rate * schedule(step, stage)
        optimizer.step()
    context.categories = _with_read(context.categories, shown, found.detach())
    folder.mkdir(parents=True, exist_ok=True)
    measured = Localise(context, stage).validate() | Masks(context, stage).validate()
    last = {name: float(value.detach()) for name, value in losses.items()}
    MetricsLog(folder / "metrics.jsonl").write(stage.name, stage.steps, 0.0, last, measured)
    context.categories.save(folder)


@torch.inference_mode()
def _start(context: Context, label: int) -> Tensor:
    """(n, d) of the known category whose boxes fit this one's first targets best.

    A category that the model knew before begins, and mostly stays, at its own.
    """
    if label < context.known:
        return context.read[label].clone()
    data = context.train
    targets = [target for target in data.targets if target.label == label][:SHOWN]
    images = [target.image for target in targets]
    content, truth = data.content[images], torch.tensor([target.box for target in targets])
    square = torch.cat([content, content], dim=1)
    embedding = data.pooled[images, 0].float()
    fits = []
    for read in context.read[: context.known]:
        _, h_det = context.model.fusion(read.expand(len(images), -1, -1))
        found = context.model.box_decoder(h_det, embedding, content) * square
        fits.append(float(paired_iou(found, truth).mean()))
    return context.read[int(torch.tensor(fits).argmax())].clone()


def _with_read(categories: Categories, labels: list[int], found: Tensor) -> Categories:
    assert categories.read is not None
    read = categories.read.copy()
    read[labels] = found.numpy()
    return Categories(categories.names, categories.states, read, categories.leads)
