"""One image with its masks, checked before anything is written about it.

Whatever cannot be used is told, file by file, and never stops the build.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medisee.data.sa_med2d import ImageRecord, Index, MaskFile
from medisee.engine.clues import Shape
from medisee.entities import Entity
from medisee.errors import DataError

__all__ = ["SPLITS", "Intake", "LeftOut", "likeness", "split_of", "take_in", "thumbnail"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class LeftOut:
    """What is not in the built set, and why; `pairs` is how many image-category pairs it costs."""

    reason: str
    file: str
    label: str = ""
    pairs: int = 0


@dataclass
class Intake:
    """The usable part of an image: its record with the good masks, and their shapes."""

    image: ImageRecord
    shapes: dict[str, Shape] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    likeness: int | None = None


def take_in(index: Index, image: ImageRecord, entities: Mapping[str, Entity]) -> Intake:
    """Reads and checks an image, its masks and its labels; a split is given where none is."""
    image = replace(image, split=split_of(image))
    taken = Intake(image)
    if image.split not in SPLITS:
        _leave_all(taken, f"the split '{image.split}' is kept apart")
        return taken
    try:
        pixels = index.load_image(image)
    except DataError:
        _leave_all(taken, "the image cannot be read")
        return taken
    taken.likeness = likeness(pixels)
    good: list[MaskFile] = []
    for label in image.labels:
        good += _take_label(index, taken, label, pixels.shape[:2], label in entities)
    taken.image = replace(image, masks=tuple(good))
    if not image.masks:
        taken.left_out.append(LeftOut("the image has no mask", image.image))
    return taken


def split_of(image: ImageRecord) -> str:
    """The given split; else 8 : 1 : 1 by patient, by image where the patient is unknown."""
    if image.split:
        return image.split
    digest = hashlib.sha256((image.patient or image.image).encode()).digest()
    return {8: "val", 9: "test"}.get(int.from_bytes(digest[:8], "big") % 10, "train")


def _leave_all(taken: Intake, reason: str) -> None:
    image = taken.image
    taken.left_out.append(LeftOut(reason, image.image, pairs=len(image.labels)))
    taken.image = replace(image, masks=())


def _take_label(
    index: Index, taken: Intake, label: str, size: tuple[int, ...], known: bool
) -> list[MaskFile]:
    """The label's good masks. One mask that cannot be used takes the whole label with it."""
    masks = [mask for mask in taken.image.masks if mask.label == label]
    if not known:
        taken.left_out.append(
            LeftOut("the knowledge base has no such label", masks[0].file, label, 1)
        )
        return []
    union, good = np.zeros(size, bool), []
    for mask in masks:
        pixels, reason = _read_mask(index, mask.file, size)
        if pixels is None:
            taken.left_out.append(LeftOut(reason, mask.file, label, 1))
            return []
        if pixels.any():
            union |= pixels
            good.append(mask)
        else:
            taken.left_out.append(LeftOut("the mask is empty", mask.file, label, 0))
    shape = Shape.of(union)
    if shape is None:
        taken.left_out.append(LeftOut("every mask of the label is empty", masks[0].file, label, 1))
        return []
    taken.shapes[label] = shape
    return good


def _read_mask(
    index: Index, file: str, size: tuple[int, ...]
) -> tuple[NDArray[np.bool_] | None, str]:
    try:
        pixels = index.load_union([file])
    except DataError:
        return None, "the mask cannot be read"
    if pixels.shape != size:
        return None, "the mask is of another size than its image"
    return pixels, ""


def likeness(pixels: NDArray[np.uint8]) -> int:
    """A 64-bit difference hash of a (H, W, 3) image: near-identical images differ in few bits."""
    small = np.asarray(_grey(pixels).resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(32, 32) grey values of a (H, W, 3) image."""
    return np.asarray(_grey(pixels).resize((32, 32), Image.Resampling.BOX), np.float32)


def _grey(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels).convert("L")
