"""SAM-family segmenters that are given a box: MedSAM, LiteMedSAM, SAM-Med2D.

Each is a folder that `medisee convert` wrote from the official checkpoint. Input conventions
(Ma et al. 2024; Cheng et al. 2023; the official predictors):

medsam      1024 px, squashed, each image to 0..1 by its own minimum and maximum; sigmoid, then
            bilinear to the image, > 0.5.
litemedsam  longest side 256, min-max, zero padding right and below; bilinear, then > 0.
sam-med2d   ImageNet mean and std, then the nearest neighbour to 256 px, squashed; of three masks
            the one that the decoder expects to be best; bilinear to 256, then to the image, > 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medisee.errors import DataError
from medisee.evaluation.systems.common import Box, BoxSegmenter, Mask
from medisee.model.segmenter import Prompts, Segmenter, load_segmenter, restore_masks
from medisee.processing import IMAGENET_MEAN, IMAGENET_STD, SegmenterInput, segmenter_input
from medisee.structures import MedicalImage

__all__ = ["KINDS", "Boxed", "load_box_segmenter", "nearest_square"]


def load_box_segmenter(kind: str, folder: Path, device: str | None = None) -> BoxSegmenter:
    """A segmenter of a kind, loaded; DataError for another encoder than the kind's.

    ModelError where the folder holds no segmenter.
    """
    segmenter = load_segmenter(folder).to(device or "cpu")
    if segmenter.config.encoder != KINDS[kind].encoder:
        raise DataError(f"{folder} holds a segmenter '{segmenter.config.encoder}', not {kind}")
    return KINDS[kind](segmenter)


class Boxed:
    """One segmenter; the last image's embedding is kept."""

    encoder = "sam"

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self._image: MedicalImage | None = None

    @torch.inference_mode()
    def __call__(self, image: MedicalImage, box: Box) -> Mask:
        """(H, W) bool mask of the target in the box xyxy px."""
        if self._image is not image:
            self._input = self.prepare(image.display)
            pixels = torch.from_numpy(self._input.pixels)[None]
            self._embedding = self.segmenter.encode(pixels.to(self._device))
            self._image = image
        content, (height, width) = self._input.content, self._input.original
        scale = np.array([content[1] / width, content[0] / height] * 2)
        scaled = torch.tensor(np.array(box) * scale, dtype=torch.float32, device=self._device)
        logits = self.decode(Prompts(boxes=scaled[None]))
        return self.restore(logits[None])[0].cpu().numpy()

    @property
    def _device(self) -> torch.device:
        return self.segmenter.mask_decoder.iou_token.weight.device

    def prepare(self, display: np.ndarray) -> SegmenterInput:
        """(H, W, 3) uint8 as the segmenter wants it."""
        side = self.segmenter.config.image_size
        return segmenter_input(display, side, "minmax", pad=False)

    def decode(self, prompts: Prompts) -> Tensor:
        """(h, w) mask logits."""
        return self.segmenter.decode(self._embedding, prompts)[0][0]

    def restore(self, logits: Tensor) -> Tensor:
        """(1, h, w) mask logits -> (1, H, W) bool."""
        chance = logits.float().sigmoid()[None]
        return _resized(chance, self._input.original)[0] > 0.5


class LiteMedSAM(Boxed):
    """LiteMedSAM's convention."""

    encoder = "tinyvit"

    def prepare(self, display: np.ndarray) -> SegmenterInput:
        """Longest side to the input's, padded."""
        return segmenter_input(display, self.segmenter.config.image_size, "minmax", pad=True)

    def restore(self, logits: Tensor) -> Tensor:
        """The padding is cut off first."""
        side = self.segmenter.config.image_size
        return restore_masks(logits, side, self._input.content, self._input.original) > 0


class SamMed2D(Boxed):
    """SAM-Med2D's convention (its predictor's; its own test script reads BGR and pads)."""

    encoder = "sam-med2d"

    def prepare(self, display: np.ndarray) -> SegmenterInput:
        """Normalised, then squashed by the nearest neighbour."""
        side = self.segmenter.config.image_size
        normal = ((display - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)
        square = nearest_square(normal, side)
        return SegmenterInput(square.transpose(2, 0, 1).copy(), (side, side), display.shape[:2])

    def decode(self, prompts: Prompts) -> Tensor:
        """The mask with the highest expected IoU of the three that several meanings allow."""
        masks, quality = several_masks(self.segmenter, self._embedding, prompts)
        return masks[int(quality.argmax())]

    def restore(self, logits: Tensor) -> Tensor:
        """By way of the square."""
        side = self.segmenter.config.image_size
        return _resized(_resized(logits.float()[None], (side, side)), self._input.original)[0] > 0


KINDS: dict[str, type[Boxed]] = {
    "medsam": Boxed,
    "litemedsam": LiteMedSAM,
    "sam-med2d": SamMed2D,
}


def several_masks(
    segmenter: Segmenter, embedding: Tensor, prompts: Prompts
) -> tuple[Tensor, Tensor]:
    """(3, h, w) mask logits and (3,) expected IoU of one target: SAM's multimask output."""
    dense = segmenter.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    masks, quality = segmenter.mask_decoder(
        image_embeddings=embedding,
        image_positional_embeddings=segmenter._positions(embedding),
        sparse_prompt_embeddings=segmenter.sparse_embedding(prompts)[:, None],
        dense_prompt_embeddings=dense.expand_as(embedding),
        multimask_output=True,
    )
    return masks[0, 0], quality[0, 0]


def nearest_square(values: np.ndarray, side: int) -> np.ndarray:
    """(H, W, C) -> (side, side, C) as OpenCV's INTER_NEAREST picks: the pixel left and above."""
    rows, columns = (
        np.minimum((np.arange(side) * (length / side)).astype(int), length - 1)
        for length in values.shape[:2]
    )
    return values[rows][:, columns]


def _resized(values: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.interpolate(values, shape, mode="bilinear", align_corners=False)
