"""From an image to what encoders read, and from mask logits back to its grid.

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
    `imagenet` is SAM's (antialiased bilinear to S, mean and std, then zeros).

    Args:
        display: (H, W, 3) uint8.
        size: S.
    """
    height, width = display.shape[:2]
    content = (size, size) if not pad else fit_longest_side(height, width, size)
    if normalisation == "minmax":
        resized = resize_area(display, content).astype(np.float32)
        low, high = resized.min(), resized.max()
        normalised = (resized - low) / max(float(high - low), 1e-8)
    else:
        normalised = (_resize_bilinear(display, content) - IMAGENET_MEAN) / IMAGENET_STD
    pixels = np.zeros((3, size, size), np.float32)
    pixels[:, : content[0], : content[1]] = normalised.transpose(2, 0, 1)
    return SegmenterInput(pixels, content, (height, width))


def fit_longest_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(h, w) after scaling the longer side to `size`; neither falls below one pixel."""
    scale = size / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_area(display: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W, C) uint8 -> (h, w, C) uint8: means over equal areas, bilinear where it enlarges.

    Equals OpenCV's INTER_AREA; Pillow's box filter counts each pixel wholly or not at all.
    """
    if shape[0] > display.shape[0] or shape[1] > display.shape[1]:
        return _resize_bilinear(display, shape)
    rows = _means(display, shape[0])
    return np.rint(_means(rows.swapaxes(0, 1), shape[1]).swapaxes(0, 1)).astype(np.uint8)


def _means(values: np.ndarray, count: int) -> np.ndarray:
    """(N, ...) -> (count, ...): means over equal parts of the first axis, cut within elements."""
    edges = np.arange(count) * (len(values) / count)
    first = edges.astype(int)
    before = (edges - first)[:, None, None] * values[first]  # belongs to the part before
    after = np.append(before[1:], np.zeros_like(before[:1]), axis=0)
    sums = np.add.reduceat(values, first, axis=0, dtype=np.float64)
    return (sums - before + after) * (count / len(values))


def _resize_bilinear(display: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    size = (shape[1], shape[0])
    return np.asarray(Image.fromarray(display).resize(size, Image.Resampling.BILINEAR))


CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def clip_input(display: np.ndarray, size: int) -> np.ndarray:
    """(3, size, size) float32: CLIP's shortest edge to `size`, central square, its mean and std."""
    height, width = fit_shortest_side(display.shape[0], display.shape[1], size)
    resized = Image.fromarray(display).resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    square = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32)
    return ((square / 255 - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)


def fit_shortest_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(h, w) after scaling the shorter side to `size`; the longer one is rounded down."""
    shortest = min(height, width)
    return size * height // shortest, size * width // shortest


def restore_mask(
    logits: np.ndarray, size: int, content: tuple[int, int], original: tuple[int, int]
) -> np.ndarray:
    """(h, w) mask logits on the padded square -> (H, W) float32 logits on the original grid.

    Args:
        size: side S of the segmenter's input.
        content: (height, width) of the image within the square.
        original: (H, W).
    """
    if logits.shape[0] != size:
        logits = _resize_float(logits, (size, size))
    return _resize_float(logits[: content[0], : content[1]], original)


def _resize_float(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
