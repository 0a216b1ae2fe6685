"""Fills the feature cache with what is missing, with a progress bar."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from ..model.placement import compute_dtype
from ..model.tinyvit import fold_batch_norms
from .features import FeatureCache


def encode_images(
    cache: FeatureCache, views: Sequence[tuple[Path, int]], encoder: nn.Module
) -> None:
    """Runs the frozen encoder once over every (image, view) that the cache lacks.

    Batch norms are folded, channels come last, and the arithmetic is bfloat16 where the device
    has it: three times as fast, and the features are kept in half precision anyway.
    """
    missing = [(file, view) for file, view in views if not cache.path(file, view).exists()]
    if not missing:
        return
    fast = copy.deepcopy(encoder).eval()
    fold_batch_norms(fast)
    device = next(encoder.parameters()).device
    fast = fast.to(compute_dtype(device)).to(memory_format=torch.channels_last)
    for file, view in track(missing, "encoding images", console=Console(stderr=True)):
        cache.fill(file, view, fast)
