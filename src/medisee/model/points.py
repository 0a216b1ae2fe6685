"""READ's points: where the similarity map is high or low, as point prompts (READ, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

POINTS, POSITIVE, NEGATIVE, GRID = 30, 0.8, 0.2, 12


def similarity_points(similarity: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
    """The clearest cells of each similarity map, as points.

    The map is pooled to at most 12 x 12 and scaled to 0..1; cells at 0.8 or more are positive
    (highest first), cells at 0.2 or less negative (lowest first); the first 30 are taken. Cells
    in the padding are never taken, and a flat map gives no points.

    Args:
        similarity: (T, N) over a square grid that covers the padded square.
        content: (T, 2) width and height of the image as a fraction of the square.

    Returns:
        Points (T, 30, 2), xy as fractions of the square, and labels (T, 30): 1, 0, or -1 (unused).
    """
    side = int(similarity.shape[1] ** 0.5)
    grid = similarity.view(-1, 1, side, side)
    if side > GRID:
        grid = F.interpolate(grid, (GRID, GRID), mode="bilinear", align_corners=False)
    side = grid.shape[-1]
    centres = _cell_centres(side, grid.device)
    values, inside = grid.flatten(1), (centres[None] < content[:, None]).all(dim=-1)
    scaled, flat = _min_max(values, inside)
    positive = (scaled >= POSITIVE) & inside & ~flat
    negative = (scaled <= NEGATIVE) & inside & ~flat
    # One descending sort gives READ's order: positives from the top, negatives from the bottom.
    rank = torch.where(positive, 2 + scaled, torch.where(negative, 1 - scaled, -1.0))
    order = rank.argsort(dim=1, descending=True, stable=True)[:, :POINTS]
    labels = torch.where(positive, 1, torch.where(negative, 0, -1)).gather(1, order)
    points = centres[order]
    missing = POINTS - order.shape[1]
    if missing > 0:
        points, labels = F.pad(points, (0, 0, 0, missing)), F.pad(labels, (0, missing), value=-1)
    return points, labels


def _cell_centres(side: int, device: torch.device) -> Tensor:
    steps = (torch.arange(side, device=device) + 0.5) / side
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], dim=-1)


def _min_max(values: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Values scaled to 0..1 by the extremes inside the content; flat rows (T, 1) are marked."""
    low = values.masked_fill(~inside, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(~inside, -torch.inf).amax(dim=1, keepdim=True)
    spread = high - low
    return (values - low) / spread.clamp(min=1e-12), spread <= 1e-12
