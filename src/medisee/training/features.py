"""Frozen encoders run once per image: features cached on disk.

One fp16 file per view of an image, keyed by the encoder's weights, the image file's content, the
view and the preprocessing: whatever changes is encoded anew. Files appear by renaming, so that
several processes fill one cache and a kill loses at most one image.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn

from ..processing import SegmenterInput, segmenter_input

PREPROCESSING = 2
"""To be raised whenever a view, or `segmenter_input`, gives other pixels than before."""


@dataclass(frozen=True)
class View:
    """A deterministic rendering of an image: number 0 is the image as it is, others are augmented.

    Only intensities vary (tone curve, inversion, shading, colour, noise, blur), strongly enough
    that what was learned on one modality or scanner carries over to another; every pixel stays
    where it is, so boxes, masks and questions hold for all views of an image.
    """

    number: int
    seed: str

    def image(self, display: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> the view's pixels, uint8."""
        if self.number == 0:
            return display
        random = self._random()
        image = Image.fromarray(display)
        if random.random() < 0.25:
            image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.4, 1.2)))
        values = np.asarray(image, np.float32) / 255
        grey = np.ptp(values, axis=-1).max() < 0.02
        values = _tone(values, random, free=grey and random.random() < 0.4)
        if not grey:
            values = values * random.uniform(0.85, 1.15, 3)
        values = values * _shading(values.shape[:2], random)[..., None]
        noise = random.normal(0, random.uniform(0, 0.04), values.shape[:2])[..., None]
        return ((values + noise).clip(0, 1) * 255).astype(np.uint8)

    def _random(self) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.seed}/{self.number}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _tone(values: np.ndarray, random: np.random.Generator, free: bool) -> np.ndarray:
    """A random tone curve: a gamma, or a free one that may turn bright tissue dark and back."""
    if not free:
        return values ** np.exp(random.uniform(-0.6, 0.6))
    knots = random.uniform(0, 1, 5)
    knots[0] = random.choice([0.0, 0.0, 1.0])  # the background mostly stays black
    return np.interp(values, np.linspace(0, 1, 5), knots).astype(np.float32)


def _shading(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """(H, W) smooth gain within about a fifth, as of an MR coil or a light."""
    coarse = random.uniform(0.8, 1.2, (3, 3)).astype(np.float32)
    size = (shape[1], shape[0])
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def fingerprint(module: nn.Module) -> str:
    """A short digest of a module's weights; buffers which follow from them are left out."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureCache:
    """Image embeddings on disk. `encode` is needed only for what is not there yet.

    Args:
        size, normalisation, pad: see `processing.segmenter_input`.
    """

    def __init__(
        self,
        folder: Path,
        encoder_id: str,
        size: int = 256,
        normalisation: str = "minmax",
        pad: bool = True,
    ) -> None:
        kind = "" if (normalisation, pad) == ("minmax", True) else f"-{normalisation}-{int(pad)}"
        self.folder = Path(folder) / f"{encoder_id}-{PREPROCESSING}{kind}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.size, self.normalisation, self.pad = size, normalisation, pad

    def path(self, image_file: Path, view: int) -> Path:
        return self.folder / f"{_content(image_file)}.{view}.npy"

    def load(self, image_file: Path, view: int) -> np.ndarray:
        """(C, E, E) fp16, memory-mapped."""
        return np.load(self.path(image_file, view), mmap_mode="r")

    def display(self, image_file: Path, view: int) -> np.ndarray:
        """(H, W, 3) uint8: the view's pixels."""
        display = np.asarray(Image.open(image_file).convert("RGB"))
        return View(view, _content(image_file)).image(display)

    def input(self, image_file: Path, view: int) -> SegmenterInput:
        shown = self.display(image_file, view)
        return segmenter_input(shown, self.size, self.normalisation, self.pad)

    @torch.inference_mode()
    def fill(self, image_file: Path, view: int, encode: nn.Module) -> None:
        target = self.path(image_file, view)
        if target.exists():
            return
        pixels = torch.from_numpy(self.input(image_file, view).pixels)[None]
        like = next(encode.parameters())
        pixels = pixels.to(like.device, like.dtype, memory_format=torch.channels_last)
        encoded = encode(pixels)
        features = encoded if isinstance(encoded, torch.Tensor) else encoded[0]
        embedding = features[0].half().cpu().numpy()
        part = target.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            np.save(file, embedding)
        part.rename(target)


def _content(image_file: Path) -> str:
    """Digest of a file's bytes, read again only when the file was written again."""
    return _digest(image_file, image_file.stat().st_mtime_ns)


@cache
def _digest(image_file: Path, changed: int) -> str:
    return hashlib.sha256(image_file.read_bytes()).hexdigest()[:24]
