"""What one step of each stage does: from a step number to named losses.

A batch follows from (seed, stage, step) alone, so a run that was killed goes on exactly where it
was. `localise` and `masks` train the heads on fixed states, one per category; `language` trains
the MLLM to emit these states; both can therefore run side by side, and `joint` brings them
together (measured in docs/experiments.md: the language model is a slow way to learn where).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from ..model.heads import GroundedBoxDecoder
from ..model.losses import box_losses, heat_loss, mask_losses
from .context import Context, Losses, Task
from .language import Language
from .recipe import Stage
from .targets import (
    COARSE,
    POOLED,
    WHOLE,
    Target,
    Targets,
    crop_boxes,
    crop_maps,
    jitter,
    paired_iou,
    random_windows,
    visible_share,
)


class HeadTask:
    """Common to `localise` and `masks`: targets drawn by category, their states given."""

    def __init__(self, context: Context, stage: Stage) -> None:
        self.context, self.stage = context, stage
        self.weights = context.train.sampling_weights()
        self.read = context.read
        if stage.augment and context.model.config.box_decoder == "mlp":
            raise DataError(
                f"stage {stage.name}: the mlp box decoder does not see the image, so its targets "
                "cannot be cropped; set augment: 0"
            )

    def _draw(self, step: int) -> tuple[_Drawn, np.random.Generator]:
        random = np.random.default_rng([self.context.seed, step, len(self.stage.name)])
        data = self.context.train
        rows = random.choice(len(data.targets), self.stage.batch, p=self.weights)
        targets = [data.targets[row] for row in rows]
        boxes = torch.tensor([target.box for target in targets])
        windows = random_windows(len(targets), self.stage.augment, random)
        windows[visible_share(boxes, windows) < 0.6] = torch.tensor(WHOLE)
        # A crop is an image of its own that fills its square.
        whole = (windows == torch.tensor(WHOLE)).all(dim=1, keepdim=True)
        content = torch.where(whole, data.content[[t.image for t in targets]], 1.0)
        truth = crop_boxes(boxes, windows) / torch.cat([content, content], dim=1)
        views = random.integers(data.views, size=len(targets)).tolist()
        maps = self.context.embedding(data, [t.image for t in targets], views)
        windows, content, truth = (part.to(maps.device) for part in (windows, content, truth))
        return _Drawn(targets, torch.from_numpy(rows), windows, content, truth, maps), random

    def _states(self, targets: Sequence[Target]) -> Tensor:
        return self.read[[target.label for target in targets]]


@dataclass(frozen=True)
class _Drawn:
    """Targets of a step: rows in the split, windows, content (T, 2), boxes (T, 4), features.

    All but the rows are where the model is.
    """

    targets: list[Target]
    rows: Tensor
    windows: Tensor
    content: Tensor
    truth: Tensor
    maps: Tensor


class Localise(HeadTask):
    """The box decoder and its router learn where each category is."""

    def losses(self, step: int, progress: float) -> Losses:
        drawn, _ = self._draw(step)
        pooled = F.avg_pool2d(crop_maps(drawn.maps, drawn.windows, 2 * POOLED), 2)
        _, h_det = self.context.model.fusion(self._states(drawn.targets))
        decoder = self.context.model.box_decoder
        if not isinstance(decoder, GroundedBoxDecoder):
            return box_losses(decoder(h_det, pooled, drawn.content), drawn.truth)
        square, heat = decoder.look(h_det, pooled)
        boxes = square / torch.cat([drawn.content, drawn.content], dim=1)
        shares = self.context.train.coarse[drawn.rows][:, None].float().to(drawn.windows.device)
        shares = F.adaptive_avg_pool2d(crop_maps(shares, drawn.windows, COARSE), heat.shape[-1])
        return {**box_losses(boxes, drawn.truth), "heat": heat_loss(heat, shares[:, 0])}

    def validate(self) -> dict[str, float]:
        """Over all targets; `by_category` is the mean of the categories' means."""
        boxes, truth = predicted_boxes(self.context, self.context.val)
        overlap = paired_iou(boxes, truth)
        return {
            "box_iou": float(overlap.mean()),
            "box_iou_by_category": by_category(overlap, self.context.val.targets),
            "acc": float((overlap > 0.5).float().mean()),
        }


class Masks(HeadTask):
    """The mask decoder and the projector, prompted by true and, more and more, predicted boxes."""

    def losses(self, step: int, progress: float) -> Losses:
        drawn, random = self._draw(step)
        data, model, targets = self.context.train, self.context.model, drawn.targets
        masks = torch.stack([data.mask(t.image, [data.labels[t.label]]) for t in targets])
        masks = masks[:, None].float().to(self.context.device)
        embedding = crop_maps(drawn.maps, drawn.windows, drawn.maps.shape[-1])
        masks = crop_maps(masks, drawn.windows, data.mask_side)[:, 0] > 0.5
        states = self._states(targets)
        with torch.no_grad():
            _, h_det = model.fusion(states)
            predicted = model.box_decoder(h_det, embedding, drawn.content)
        start, end = self.stage.true_boxes
        share = start + (end - start) * progress
        given = jitter(drawn.truth, random)
        use_true = torch.from_numpy(random.random(len(targets)) < share)[:, None]
        prompts = torch.where(use_true.to(given.device), given, predicted)
        located = model.locate(
            states, embedding, states[:, :1], drawn.content, prompt_boxes=prompts.float()
        )
        return mask_losses(located.mask_logits, masks)

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Dice on 300 fixed targets, with predicted and with true boxes."""
        data, model = self.context.val, self.context.model
        picked = np.random.default_rng(0).permutation(len(data.targets))[:300]
        scores: dict[str, list[float]] = defaultdict(list)
        for row in picked:
            target = data.targets[row]
            embedding = self.context.embedding(data, [target.image], [0])
            states = self._states([target])
            content = data.content[[target.image]].to(embedding.device)
            square = torch.cat([content, content], dim=1)
            true_box = torch.tensor([target.box], device=square.device) / square
            truth = data.mask(target.image, [data.labels[target.label]]).to(embedding.device)
            for name, box in (("dice", None), ("dice_true_box", true_box)):
                located = model.locate(states, embedding, states[:, :1], content, prompt_boxes=box)
                for logits in located.mask_logits if located.mask_logits is not None else ():
                    scores[name].append(dice(logits > 0, truth))
        return {name: float(np.mean(values)) for name, values in scores.items()}


@torch.inference_mode()
def predicted_boxes(context: Context, data: Targets, chunk: int = 128) -> tuple[Tensor, Tensor]:
    """Boxes that the head gives from the true category's states, and the true ones."""
    found = []
    for start in range(0, len(data.targets), chunk):
        part = data.targets[start : start + chunk]
        _, h_det = context.model.fusion(context.read[[t.label for t in part]])
        images = [t.image for t in part]
        content = data.content[images].to(context.device)
        pooled = context.pooled(data, images, [0] * len(images))
        boxes = context.model.box_decoder(h_det, pooled, content)
        found.append(boxes * torch.cat([content, content], dim=1))
    return torch.cat(found), torch.tensor([t.box for t in data.targets], device=context.device)


def by_category(values: Tensor, targets: Sequence[Target]) -> float:
    """Mean over categories of the mean of each one's values: the rare count as the common."""
    grouped: dict[int, list[float]] = defaultdict(list)
    for value, target in zip(values.tolist(), targets, strict=True):
        grouped[target.label].append(value)
    return float(np.mean([np.mean(group) for group in grouped.values()]))


def dice(predicted: Tensor, truth: Tensor) -> float:
    """Dice of two bool masks of one shape; two empty ones agree."""
    total = predicted.sum() + truth.sum()
    return 1.0 if total == 0 else float(2 * (predicted & truth).sum() / total)


TASKS: dict[str, Callable[[Context, Stage], Task]] = {
    "localise": Localise,
    "masks": Masks,
    "language": Language,
    "joint": Language,
}
