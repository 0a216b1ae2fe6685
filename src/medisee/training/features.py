"""Frozen encoders run once per image: features cached on disk.

One fp16 file per view of an image, keyed by the encoder's weights, the image's file name and the
view: an image that changes under its old name is not encoded anew. Files appear by renaming, so
that several processes fill one cache and a kill loses at most one image.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn

from ..processing import SegmenterInput, segmenter_input


@dataclass(frozen=True)
class View:
    """A deterministic rendering of an image: number 0 is the image as it is, others are augmented.

    Intensity (gamma, inversion, noise, blur) varies so that what was learned on one modality or
    scanner carries over; the frame (crop or border) varies so that position is not learned by
    heart. Never mirrored: left and right are the patient's.
    """

    number: int
    seed: str

    def _random(self) -> np.random.Generator:
        digest = hashlib.sha256(f"{self.seed}/{self.number}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "little"))

    def frame(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the view in the image; may reach beyond its border."""
        if self.number == 0:
            return 0, 0, width, height
        random = self._random()
        scale = random.uniform(0.72, 1.15)
        box_width, box_height = scale * width, scale * height * random.uniform(0.9, 1.1)
        left = random.uniform(min(0, width - box_width), max(0, width - box_width))
        top = random.uniform(min(0, height - box_height), max(0, height - box_height))
        return round(left), round(top), round(left + box_width), round(top + box_height)

    def image(self, display: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> the view's pixels, uint8."""
        if self.number == 0:
            return display
        framed = Image.fromarray(display).crop(self.frame(*display.shape[:2]))
        random = np.random.default_rng(self._random().integers(2**32))
        if random.random() < 0.25:
            framed = framed.filter(ImageFilter.GaussianBlur(random.uniform(0.4, 1.2)))
        values = np.asarray(framed, np.float32) / 255
        values = values ** np.exp(random.uniform(-0.5, 0.5))
        grey = np.ptp(values, axis=-1).max() < 0.02
        if grey and random.random() < 0.12:
            values = 1 - values
        if not grey:
            values = values * random.uniform(0.85, 1.15, 3)
        values = values + random.normal(0, random.uniform(0, 0.03), values.shape)
        return (values.clip(0, 1) * 255).astype(np.uint8)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) bool -> the same crop of it."""
        if self.number == 0:
            return mask
        return np.asarray(Image.fromarray(mask).crop(self.frame(*mask.shape)))


def fingerprint(module: nn.Module) -> str:
    """A short digest of a module's weights; buffers which follow from them are left out."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class FeatureCache:
    """Image embeddings on disk. `encoder` is needed only for what is not there yet."""

    def __init__(self, folder: Path, encoder_id: str, size: int = 256) -> None:
        self.folder = Path(folder) / encoder_id
        self.folder.mkdir(parents=True, exist_ok=True)
        self.size = size

    def path(self, image_file: Path, view: int) -> Path:
        return self.folder / f"{image_file.stem}.{view}.npy"

    def load(self, image_file: Path, view: int) -> np.ndarray:
        """(C, E, E) fp16, memory-mapped."""
        return np.load(self.path(image_file, view), mmap_mode="r")

    def input(self, image_file: Path, view: int) -> SegmenterInput:
        display = np.asarray(Image.open(image_file).convert("RGB"))
        return segmenter_input(View(view, image_file.stem).image(display), self.size)

    @torch.inference_mode()
    def fill(self, image_file: Path, view: int, encode: nn.Module) -> None:
        target = self.path(image_file, view)
        if target.exists():
            return
        pixels = torch.from_numpy(self.input(image_file, view).pixels)[None]
        pixels = pixels.to(next(encode.parameters()).dtype)
        embedding = encode(pixels.to(memory_format=torch.channels_last))[0].half().numpy()
        part = target.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            np.save(file, embedding)
        part.rename(target)
