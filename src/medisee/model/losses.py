"""Every loss of the paper, as named terms (section 3.3 and 3.4).

Shape letters: T targets, H and W rows and columns of the masks, N image tokens, A supervised
tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

PAPER_WEIGHTS: Mapping[str, float] = {
    "text": 1.0,
    "bce": 2.0,
    "dice": 0.5,
    "l1": 1.0,
    "giou": 1.0,
    "similarity_js": 2.0,
    "similarity_mse": 1.0,
}


def text_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of (A, V) logits against (A,) token ids, mean over all tokens."""
    return F.cross_entropy(logits.float(), targets)


def mask_losses(logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """`bce` and `dice` of (T, H, W) logits against bool masks of the same shape, mean per target.

    Dice is computed on sums divided by 1000, with an epsilon of 1e-6, as LISA does: the epsilon is
    worth 1e-3 of a pixel, so that an empty target is defined and others are not smoothed.
    """
    truth = masks.flatten(1).float()
    scores = logits.flatten(1).float()
    bce = F.binary_cross_entropy_with_logits(scores, truth, reduction="none").mean(dim=1)
    scale, eps = 1000.0, 1e-6
    chance = scores.sigmoid()
    overlap = (chance / scale * truth).sum(dim=1)
    total = (chance / scale).sum(dim=1) + (truth / scale).sum(dim=1)
    dice = 1 - (2 * overlap + eps) / (total + eps)
    return {"bce": bce.mean(), "dice": dice.mean()}


def box_losses(boxes: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """`l1` (mean over 4 T numbers, on xyxy) and `giou` (mean) of (T, 4) cxcywh boxes in 0..1."""
    predicted, wanted = to_corners(boxes.float()), to_corners(truth.float())
    giou = 1 - generalized_box_iou(predicted, wanted)
    return {"l1": F.l1_loss(predicted, wanted), "giou": giou.mean()}


def generalized_box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of paired (T, 4) xyxy boxes -> (T,) in -1..1 (Rezatofighi et al. 2019).

    Boxes without area give finite values: the authors' code gives NaN there, or drops the image.
    """
    eps = 1e-12
    area = _area(first) + _area(second)
    overlap_low = torch.maximum(first[:, :2], second[:, :2])
    overlap_high = torch.minimum(first[:, 2:], second[:, 2:])
    overlap = (overlap_high - overlap_low).clamp(min=0).prod(dim=1)
    union = area - overlap
    hull_low = torch.minimum(first[:, :2], second[:, :2])
    hull_high = torch.maximum(first[:, 2:], second[:, 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(dim=1)
    return overlap / (union + eps) - (hull - union) / (hull + eps)


def to_corners(boxes: Tensor) -> Tensor:
    """cxcywh -> xyxy, any unit."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([centre - half, centre + half], dim=1)


def similarity_losses(similarity: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Fine-tuning's similarity loss: maps (T, N) of the question and of the bare label.

    `similarity_js`: Jensen-Shannon divergence of their softmaxes, natural logarithm, mean per
    target; `similarity_mse`: mean squared difference. The reference takes no gradient.
    """
    reference = reference.detach().float()
    similarity = similarity.float()
    log_p, log_q = similarity.log_softmax(dim=-1), reference.log_softmax(dim=-1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    divergence = (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(dim=-1) / 2
    return {
        "similarity_js": divergence.mean(),
        "similarity_mse": F.mse_loss(similarity, reference),
    }


def heat_loss(heat: Tensor, shares: Tensor) -> Tensor:
    """Heat logits and covered shares (T, g, g): balanced cross-entropy plus soft Dice.

    Most cells are empty, so that the covered ones together weigh as much as the empty ones.
    """
    heat = heat.float()
    entropy = F.binary_cross_entropy_with_logits(heat, shares, reduction="none")
    weights = shares / _mass(shares) + (1 - shares) / _mass(1 - shares)
    balanced = (entropy * weights).sum(dim=(1, 2)) / 2
    chance = heat.sigmoid()
    overlap = 2 * (chance * shares).sum(dim=(1, 2))
    dice = 1 - overlap / (chance.sum(dim=(1, 2)) + shares.sum(dim=(1, 2))).clamp(min=1e-6)
    return (balanced + dice).mean()


def _mass(shares: Tensor) -> Tensor:
    """(T, 1, 1) sum over the grid, at least half a cell."""
    return shares.sum(dim=(1, 2), keepdim=True).clamp(min=0.5)


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The total of the named terms.

    Raises:
        KeyError: if a term has no weight: a loss is never dropped in silence.
    """
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
