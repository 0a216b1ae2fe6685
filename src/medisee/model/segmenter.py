"""One door to every SAM-family segmenter: `encode(pixels)` and `decode(embedding, prompts)`.

Prompt encoder and mask decoder are transformers' own; the image encoder is SAM's ViT (with
SAM-Med2D's adapters, where they are) or LiteMedSAM's TinyViT. `SamModel.forward` is not used: it
swallows unknown arguments and has no place for a text prompt, and its embedding helpers stop the
gradients.

Shape letters: B images, Q questions (targets), C prompt channels, S input side, E embedding side.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import (
    SamMaskDecoder,
    SamPositionalEmbedding,
    SamPromptEncoder,
    SamVisionEncoder,
)

from ..errors import ModelError
from .configuration import SegmenterConfig
from .sam_med2d import AdaptedVisionEncoder
from .tinyvit import TinyViT


@dataclass(frozen=True)
class Prompts:
    """What the mask decoder is told about each of Q targets; any part may be missing.

    Attributes:
        boxes: (Q, 4) xyxy in pixels of the S x S input.
        text: (Q, C) one embedding each, from the mask-prompt projector.
        points: (Q, P, 2) xy in pixels of the S x S input.
        point_labels: (Q, P); 1 inside, 0 outside, -1 unused.
    """

    boxes: Tensor | None = None
    text: Tensor | None = None
    points: Tensor | None = None
    point_labels: Tensor | None = None


class Segmenter(nn.Module):
    """Image encoder, prompt encoder and mask decoder of the SAM family."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        sam = config.sam_config
        sam.mask_decoder_config._attn_implementation = "sdpa"
        sam.vision_config._attn_implementation = "sdpa"
        self.config = config
        self.shared_image_embedding = SamPositionalEmbedding(sam.vision_config)
        self.vision_encoder = _vision_encoder(config)
        self.prompt_encoder = SamPromptEncoder(sam)
        self.mask_decoder = SamMaskDecoder(sam.mask_decoder_config)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) normalised pixels -> (B, C, E, E) image embedding.

        The encoder may be in another precision than the mask decoder, whose the embedding gets.
        """
        encoded = self.vision_encoder(pixels.to(next(self.vision_encoder.parameters()).dtype))
        embedding = encoded if isinstance(encoded, Tensor) else encoded[0]
        return embedding.to(self.mask_decoder.iou_token.weight.dtype)

    def decode(self, embedding: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Masks of Q targets, a single one each.

        Args:
            embedding: (Q, C, E, E), the embedding of each target's image.
            prompts: box, text and points of each target.

        Returns:
            Mask logits (Q, 4E, 4E) on the input's grid, and the decoder's own IoU estimate (Q,).
        """
        sparse = self.sparse_embedding(prompts)
        count, channels = len(embedding), embedding.shape[1]
        dense = self.prompt_encoder.no_mask_embed.weight.reshape(1, channels, 1, 1)
        masks, quality = self.mask_decoder(
            image_embeddings=embedding,
            image_positional_embeddings=self._positions(embedding).expand(count, -1, -1, -1),
            sparse_prompt_embeddings=sparse[:, None],
            dense_prompt_embeddings=dense.expand_as(embedding),
            multimask_output=False,
        )
        return masks[:, 0, 0], quality[:, 0, 0]

    def sparse_embedding(self, prompts: Prompts) -> Tensor:
        """(Q, n, C): points (and a padding point without a box), the two corners, the text."""
        parts = []
        if prompts.boxes is not None or prompts.points is not None:
            located, _ = self.prompt_encoder(
                None if prompts.points is None else prompts.points[:, None],
                None if prompts.point_labels is None else prompts.point_labels[:, None],
                None if prompts.boxes is None else prompts.boxes[:, None],
                None,
            )
            parts.append(located[:, 0])
        if prompts.text is not None:
            parts.append(prompts.text[:, None].to(self.shared_image_embedding.positional_embedding))
        return torch.cat(parts, dim=1)

    def _positions(self, embedding: Tensor) -> Tensor:
        """(1, C, E, E) positional encoding of the embedding's grid."""
        side = embedding.shape[-1]
        steps = (torch.arange(side, device=embedding.device, dtype=embedding.dtype) + 0.5) / side
        rows, columns = torch.meshgrid(steps, steps, indexing="ij")
        encoded = self.shared_image_embedding(torch.stack([columns, rows], dim=-1))
        return encoded.permute(2, 0, 1)[None]


def _vision_encoder(config: SegmenterConfig) -> nn.Module:
    if config.encoder == "tinyvit":
        return TinyViT(config.tinyvit_config)
    kind = AdaptedVisionEncoder if config.encoder == "sam-med2d" else SamVisionEncoder
    return kind(config.sam_config.vision_config)


def restore_masks(
    logits: Tensor, image_size: int, content: tuple[int, int], original: tuple[int, int]
) -> Tensor:
    """Mask logits of one image on its original grid, differentiable.

    Args:
        logits: (Q, h, w) as the mask decoder gave them, on the padded square.
        image_size: side S of the segmenter's input.
        content: (height, width) of the image within the S x S input, without the padding.
        original: (height, width) of the original image.

    Returns:
        (Q, H, W) logits; a mask is `logits > 0`.
    """
    square = F.interpolate(
        logits[None].float(), (image_size, image_size), mode="bilinear", align_corners=False
    )
    cut = square[..., : content[0], : content[1]]
    return F.interpolate(cut, original, mode="bilinear", align_corners=False)[0]


def load_segmenter(folder: Path) -> Segmenter:
    """A segmenter alone, from a folder that `medisee convert` wrote.

    Raises:
        ModelError: no such folder, or weights that do not fit their configuration.
    """
    try:
        segmenter = Segmenter(SegmenterConfig.from_pretrained(folder))
        files = sorted(folder.glob("model*.safetensors"))
        segmenter.load_state_dict({n: v for file in files for n, v in load_file(file).items()})
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{folder} holds no segmenter that can be loaded: {reason}") from error
    return segmenter.eval()
