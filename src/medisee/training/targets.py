"""The labelled targets of a split as arrays, their features, and geometric augmentation.

Coordinates are those of the segmenter's padded square, 0..1 ("square" below).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..boxes import mask_to_box
from ..data.sa_med2d import ImageRecord, Index
from ..model.losses import to_corners
from ..processing import SegmenterInput, fit_longest_side
from .features import FeatureCache

POOLED = 16
COARSE = 64
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Target:
    """One category in one image: `box` is cxcywh in the square."""

    image: int
    label: int
    box: tuple[float, float, float, float]


class Targets:
    """Images, labels and features of one split.

    `pooled` holds (images, views, C, 16, 16) features, `coarse` (targets, 64, 64) mask shares.

    Args:
        labels: every label that the run knows, in a fixed order.
        size: side S of the segmenter's input.
        views: cached renderings of each image, see `features.View`.
        mask_side: side of the mask decoder's masks; S where not told.
    """

    def __init__(
        self,
        index: Index,
        split: str,
        labels: list[str],
        cache: FeatureCache,
        size: int,
        views: int = 1,
        mask_side: int | None = None,
    ) -> None:
        self.index, self.split, self.cache, self.size = index, split, cache, size
        self.mask_side = mask_side or size
        self.labels, self.views = labels, views
        self.images = [r for r in index.records(split) if set(r.labels) & set(labels)]
        self.row = {record.image: i for i, record in enumerate(self.images)}
        self.content = torch.zeros(len(self.images), 2)
        self.originals: list[tuple[int, int]] = []
        self.targets: list[Target] = []
        self.shares: list[Tensor] = []
        number = {label: i for i, label in enumerate(labels)}
        for row, record in enumerate(self.images):
            self._add(row, record, number)
        self.coarse = torch.stack(self.shares)
        self.pooled = self._all_pooled()

    def _add(self, row: int, record: ImageRecord, number: dict[str, int]) -> None:
        with Image.open(self.index.root / record.image) as image:
            width, height = image.size
        h, w = self._fit(height, width, self.size)
        self.content[row] = torch.tensor([w / self.size, h / self.size])
        self.originals.append((height, width))
        for label in record.labels:
            if label not in number:
                continue
            mask = self.index.load_mask(record, label)
            box = mask_to_box(mask)
            if box is not None:
                x1, y1, x2, y2 = np.array(box) / [width, height, width, height]
                cx, cy = (x1 + x2) / 2 * w / self.size, (y1 + y2) / 2 * h / self.size
                size = ((x2 - x1) * w / self.size, (y2 - y1) * h / self.size)
                self.targets.append(Target(row, number[label], (cx, cy, *size)))
                self.shares.append(_coarse(mask, (h, w), self.size))

    def _fit(self, height: int, width: int, side: int) -> tuple[int, int]:
        """(h, w) of an image on a square; the whole of it where the segmenter pads nothing."""
        return fit_longest_side(height, width, side) if self.cache.pad else (side, side)

    def renew(self, cache: FeatureCache) -> None:
        """Takes the features from another cache: the encoder was trained."""
        self.cache = cache
        self.pooled = self._all_pooled()

    def path(self, row: int) -> Path:
        return self.index.root / self.images[row].image

    def display(self, row: int, view: int) -> np.ndarray:
        """(H, W, 3) uint8."""
        return self.cache.display(self.path(row), view)

    def pixels(self, row: int, view: int) -> SegmenterInput:
        """What the encoder makes features of."""
        return self.cache.input(self.path(row), view)

    def features(self, row: int, view: int = 0) -> Tensor:
        """(C, E, E) float32 embedding."""
        return torch.from_numpy(self.cache.load(self.path(row), view).astype(np.float32))

    def _all_pooled(self) -> Tensor:
        channels = self.features(0).shape[0] if self.images else 0
        # Written in place: small results kept between large passing ones would hold their memory.
        pooled = torch.empty(
            len(self.images), self.views, channels, POOLED, POOLED, dtype=torch.half
        )
        for row in range(len(self.images)):
            for view in range(self.views):
                pooled[row, view] = F.adaptive_avg_pool2d(self.features(row, view), POOLED)
        return pooled

    def mask(self, row: int, labels: list[str]) -> Tensor:
        """(M, M) bool: union of the labels' masks on the mask decoder's square."""
        files = [file for label in labels for file in self.images[row].files(label)]
        mask, side = self.index.load_union(files), self.mask_side
        h, w = self._fit(mask.shape[0], mask.shape[1], side)
        grey = Image.fromarray(mask.astype(np.uint8) * 255)
        kind = Image.Resampling.BOX if h < mask.shape[0] else Image.Resampling.BILINEAR
        square = np.zeros((side, side), bool)
        square[:h, :w] = np.asarray(grey.resize((w, h), kind)) > 127
        return torch.from_numpy(square)

    def sampling_weights(self) -> np.ndarray:
        """Probability of each target: a category with n targets gets a share as sqrt(n)."""
        counts = Counter(target.label for target in self.targets)
        weights = np.array([counts[target.label] ** -0.5 for target in self.targets])
        return weights / weights.sum()


def _coarse(mask: np.ndarray, shape: tuple[int, int], size: int) -> Tensor:
    """Share of each of COARSE x COARSE cells of the square that the mask covers, fp16."""
    square = np.zeros((size, size), np.uint8)
    resized = Image.fromarray(mask.astype(np.uint8) * 255).resize(shape[::-1])
    square[: shape[0], : shape[1]] = np.asarray(resized)
    shares = F.adaptive_avg_pool2d(torch.from_numpy(square)[None, None].float(), COARSE)
    return (shares[0, 0] / 255).half()


def random_windows(count: int, share: float, random: np.random.Generator) -> Tensor:
    """(count, 4) x, y, width, height of the part of the square that is shown.

    A `share` of them is cropped, shifted and stretched; the others are the whole square.
    """
    windows = torch.tensor([WHOLE]).repeat(count, 1)
    for row in np.flatnonzero(random.random(count) < share):
        size = random.uniform(0.65, 1.1) * random.uniform(0.92, 1.08, 2)
        room = 1 - size
        start = np.where(room > 0, random.uniform(0, 1, 2) * room, room / 2)
        start = start + random.uniform(-0.05, 0.05, 2)
        windows[row] = torch.tensor([*start, *size])
    return windows


def crop_maps(maps: Tensor, windows: Tensor, side: int) -> Tensor:
    """Shows each window of (T, C, E, E) maps on a side x side grid, bilinearly."""
    scale, start = windows[:, 2:], windows[:, :2]
    theta = torch.zeros(len(maps), 2, 3, device=maps.device)
    theta[:, 0, 0], theta[:, 1, 1] = scale[:, 0], scale[:, 1]
    theta[:, :, 2] = 2 * start + scale - 1
    grid = F.affine_grid(theta, [len(maps), 1, side, side], align_corners=False)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def crop_boxes(boxes: Tensor, windows: Tensor) -> Tensor:
    """cxcywh boxes in the square -> in their windows, clipped to them."""
    low = (boxes[:, :2] - boxes[:, 2:] / 2 - windows[:, :2]) / windows[:, 2:]
    high = (boxes[:, :2] + boxes[:, 2:] / 2 - windows[:, :2]) / windows[:, 2:]
    low, high = low.clamp(0, 1), high.clamp(0, 1)
    return torch.cat([(low + high) / 2, high - low], dim=1)


def visible_share(boxes: Tensor, windows: Tensor) -> Tensor:
    """(T,) how much of each box's area its window shows."""
    cropped = crop_boxes(boxes, windows)[:, 2:] * windows[:, 2:]
    return cropped.prod(dim=1) / boxes[:, 2:].prod(dim=1).clamp(min=1e-9)


def jitter(boxes: Tensor, random: np.random.Generator) -> Tensor:
    """True boxes (T, 4) cxcywh, moved and resized by up to a tenth or so."""
    noise = torch.from_numpy(random.normal(0, 0.06, boxes.shape)).to(boxes)
    moved = boxes[:, :2] + noise[:, :2] * boxes[:, 2:]
    return torch.cat([moved, boxes[:, 2:] * (1 + noise[:, 2:].abs())], dim=1)


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """(T,) IoU of paired cxcywh boxes."""
    a, b = to_corners(first.float()), to_corners(second.float())
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    overlap = (high - low).clamp(min=0).prod(dim=1)
    total = first[:, 2:].prod(dim=1) + second[:, 2:].prod(dim=1)
    return overlap / (total - overlap).clamp(min=1e-9)
