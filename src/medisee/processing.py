"""From image and question to arrays, and from raw outputs to an `Answer` (numpy, Pillow).

Both runtimes share this file, so it knows neither torch nor transformers.

Shape letters: S side of the segmenter's input, h and w rows and columns of the image within it,
H and W of the original image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

IMAGENET_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
IMAGENET_STD = np.array([58.395, 57.12, 57.375], np.float32)


@dataclass(frozen=True)
class SegmenterInput:
    """One image as the segmenter wants it.

    Attributes:
        pixels: (3, S, S) float32, normalised; zeros right and below where padded.
        content: (h, w), the part of the S x S square which the image fills.
        original: (H, W) of the original image.
    """

    pixels: np.ndarray
    content: tuple[int, int]
    original: tuple[int, int]

    @property
    def content_fraction(self) -> tuple[float, float]:
        """(width, height) of the content as a fraction of the square."""
        side = self.pixels.shape[-1]
        return self.content[1] / side, self.content[0] / side


def segmenter_input(
    display: np.ndarray, size: int, normalisation: str = "minmax", pad: bool = True
) -> SegmenterInput:
    """Resizes, normalises and pads one image.

    `minmax` with padding is LiteMedSAM's official recipe (longest side to S by area, each image to
    0..1 by its own minimum and maximum, zeros right and below); without padding, MedSAM's.
    `imagenet` is SAM's (mean and std first, then zeros).

    Args:
        display: (H, W, 3) uint8.
        size: S.
    """
    height, width = display.shape[:2]
    content = (size, size) if not pad else fit_longest_side(height, width, size)
    resized = _resize(display, content).astype(np.float32)
    if normalisation == "minmax":
        low, high = resized.min(), resized.max()
        normalised = (resized - low) / max(float(high - low), 1e-8)
    else:
        normalised = (resized - IMAGENET_MEAN) / IMAGENET_STD
    pixels = np.zeros((3, size, size), np.float32)
    pixels[:, : content[0], : content[1]] = normalised.transpose(2, 0, 1)
    return SegmenterInput(pixels, content, (height, width))


def fit_longest_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(h, w) after scaling the longer side to `size`; neither falls below one pixel."""
    scale = size / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def _resize(display: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    # Area averaging when shrinking, bilinear when enlarging: what OpenCV's INTER_AREA does.
    shrinks = shape[0] < display.shape[0] or shape[1] < display.shape[1]
    kind = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(display).resize((shape[1], shape[0]), kind))
