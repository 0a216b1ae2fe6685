"""IMIS-Net (Cheng et al. 2025), written from its paper and facts; the weights are the user's.

SAM's ViT with a 768-wide prompt encoder and mask decoder, four semantic tokens in front of the
prompts, and CLIP's text encoder: a text is one sparse token and, projected, is multiplied with the
upscaled features and added to every mask. The semantic head, which names categories, is not built.

Input: RGB, nearest neighbour on 8 bits to S x S (1024), then ImageNet mean and std. Text: "A
segmentation area of a {name}.", lower case, blanks for - and _. Of three masks the one with the
highest expected IoU; bilinear to S, then to the image, > 0. Licence: none is stated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, SamConfig
from transformers.models.sam.modeling_sam import (
    SamMaskDecoder,
    SamPositionalEmbedding,
    SamPromptEncoder,
    SamVisionEncoder,
)

from medisee.errors import ModelError
from medisee.evaluation.systems import Setup
from medisee.evaluation.systems.common import Box, Found, Mask, OneByOne
from medisee.evaluation.systems.plain import with_true_boxes
from medisee.model.convert.files import open_file
from medisee.model.convert.names import SAM, KeyMap
from medisee.processing import IMAGENET_MEAN, IMAGENET_STD
from medisee.structures import MedicalImage

__all__ = ["IMISNet", "ImisSegmenter", "build", "load", "true_box"]

TEMPLATE = "A segmentation area of a {}."
SEMANTIC_TOKENS = 4
_BOX_IS_INCLUSIVE = 1  # its boxes end at the last pixel, ours behind it

_MAP = KeyMap(
    "",
    "",
    (
        (r"image_encoder\.sam_encoder\.neck\.", ()),  # in the file, and not used
        (r"mask_decoder\.semantic_prediction_head\.", ()),
        (r"text_model\.text_model\.embeddings\.position_ids$", ()),
        (r"text_model\.text_model\.", "text_model."),
        (r"text_out_dim\.", "text_out_dim."),
        (r"mask_decoder\.(semantic_tokens|text_output)\.", r"mask_decoder.\1."),
        *SAM,
    ),
)
"""Official name -> ours, after `_as_sam` has turned timm's names into SAM's."""


def build(setup: Setup, segmenter: str, tokenizer: str) -> OneByOne:
    """IMIS-Net asked with the question itself, as in the paper's tables."""
    model = load(Path(segmenter), Path(tokenizer), setup.device)
    return OneByOne("IMIS-Net", model)


def true_box(setup: Setup, segmenter: str, tokenizer: str) -> OneByOne:
    """IMIS-Net given the true box."""
    model = load(Path(segmenter), Path(tokenizer), setup.device)
    return with_true_boxes(setup, model.in_box, "IMIS-Net, true box")


def load(weights: Path, tokenizer: Path, device: str | None = None) -> ImisSegmenter:
    """From the official state dict (.pth or safetensors) and CLIP's tokenizer.json."""
    file = open_file(weights)
    net = IMISNet.from_state({name: file.tensor(name) for name in file.shapes})
    return ImisSegmenter(net.to(device or "cpu"), Tokenizer.from_file(str(tokenizer)))


class _Decoder(SamMaskDecoder):
    """SAM's mask decoder with semantic tokens and a text term."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.semantic_tokens = nn.Embedding(SEMANTIC_TOKENS, config.hidden_size)
        self.text_output = nn.Linear(config.hidden_size, config.hidden_size // 8)

    def masks(
        self, embedding: Tensor, positions: Tensor, sparse: Tensor, text: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(3, h, w) mask logits and (3,) expected IoU.

        embedding: (1, C, E, E), with the dense prompt; sparse: (n, C); text: (C,) or None.
        """
        own = [self.iou_token.weight, self.mask_tokens.weight, self.semantic_tokens.weight]
        tokens = torch.cat([*own, sparse])[None, None]
        states, image = self.transformer(tokens, embedding, positions, None)
        image = image.transpose(2, 3).reshape(embedding.shape)
        features = self.activation(self.upscale_layer_norm(self.upscale_conv1(image)))
        features = self.activation(self.upscale_conv2(features))[0]
        heads = zip(self.output_hypernetworks_mlps, states[0, 0, 1:], strict=False)
        weights = torch.stack([head(state) for head, state in heads])
        if text is not None:
            weights = weights + self.text_output(text)
        masks = torch.einsum("kc,chw->khw", weights, features)
        return masks[1:], self.iou_prediction_head(states[0, 0, 0])[1:]


class IMISNet(nn.Module):
    """The network."""

    def __init__(self, sam: SamConfig, text: CLIPTextConfig) -> None:
        super().__init__()
        self.shared_image_embedding = SamPositionalEmbedding(sam.vision_config)
        self.vision_encoder = SamVisionEncoder(sam.vision_config)
        self.prompt_encoder = SamPromptEncoder(sam)
        self.mask_decoder = _Decoder(sam.mask_decoder_config)
        self.text_model = CLIPTextModel(text)
        self.text_out_dim = nn.Linear(text.hidden_size, sam.mask_decoder_config.hidden_size)
        self.image_size = sam.vision_config.image_size

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], text_heads: int | None = None) -> IMISNet:
        """Built to the sizes of an official state dict, and loaded strictly.

        text_heads: attention heads of the text encoder; None: one for 64 channels, as CLIP has.
        Raises ModelError for a name that has no place, and for a place without a weight.
        """
        sam, text = _sizes(state, text_heads)
        model = cls(sam, text)
        renamed: dict[str, Tensor] = {}
        for name, value in state.items():
            names = _MAP.translate(_as_sam(name))
            if names is None:
                raise ModelError(f"IMIS-Net has no weight called {name}")
            renamed |= dict.fromkeys(names, value)
        try:
            model.load_state_dict(renamed)
        except RuntimeError as error:
            raise ModelError(f"these are not IMIS-Net's weights: {error}") from error
        return model.eval()

    def encode(self, pixels: Tensor) -> Tensor:
        """(1, 3, S, S) -> (1, C, E, E)."""
        return self.vision_encoder(pixels)[0]

    def embed_text(self, ids: Tensor) -> Tensor:
        """(1, L) token ids -> (C,)."""
        return self.text_out_dim(self.text_model(ids).pooler_output)[0]

    def decode(
        self, embedding: Tensor, box: Tensor | None = None, text: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(3, h, w) mask logits and (3,) expected IoU.

        box: (4,) xyxy in pixels of the S x S input; text: (C,); at least one of them.
        """
        parts = []
        if box is not None:
            parts.append(self.prompt_encoder._embed_boxes(box[None, None])[0, 0])
        if text is not None:
            parts.append(text[None])
        dense = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        positions = self._positions(embedding)
        return self.mask_decoder.masks(embedding + dense, positions, torch.cat(parts), text)

    def _positions(self, embedding: Tensor) -> Tensor:
        side = embedding.shape[-1]
        steps = (torch.arange(side, device=embedding.device) + 0.5) / side
        rows, columns = torch.meshgrid(steps, steps, indexing="ij")
        return self.shared_image_embedding(torch.stack([columns, rows], -1)).permute(2, 0, 1)[None]


def _as_sam(name: str) -> str:
    """timm's names of the image encoder -> SAM's."""
    name = re.sub(r"^image_encoder\.sam_encoder\.(?!neck)", "image_encoder.", name)
    return re.sub(r"\.mlp\.fc([12])\.", r".mlp.lin\1.", name) if "image_encoder" in name else name


def _sizes(state: Mapping[str, Tensor], text_heads: int | None) -> tuple[SamConfig, CLIPTextConfig]:
    """Every size, read off the shapes; ModelError where the first ones are missing."""
    try:
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        encoder, text = "image_encoder.sam_encoder.", "text_model.text_model."
        _, grid, _, width = shapes[f"{encoder}pos_embed"]
        reach = [
            shapes[f"{encoder}blocks.{n}.attn.rel_pos_h"]
            for n in range(_count(shapes, f"{encoder}blocks."))
        ]
        everywhere = [n for n, (length, _) in enumerate(reach) if length == 2 * grid - 1]
        windows = {(length + 1) // 2 for length, _ in reach if length != 2 * grid - 1}
        channels = shapes["mask_decoder.iou_token.weight"][1]
        mixing = shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0]
        words, text_width = shapes[f"{text}embeddings.token_embedding.weight"]
        patch = shapes[f"{encoder}patch_embed.proj.weight"][-1]
        sam = SamConfig(
            vision_config={
                "image_size": grid * patch, "patch_size": patch, "hidden_size": width,
                "num_hidden_layers": len(reach), "num_attention_heads": width // reach[0][1],
                "output_channels": channels, "num_pos_feats": channels // 2,
                "mlp_dim": shapes[f"{encoder}blocks.0.mlp.fc1.weight"][0],
                "window_size": windows.pop() if windows else 0, "layer_norm_eps": 1e-5,
                "global_attn_indexes": everywhere,
            },
            prompt_encoder_config={
                "image_size": grid * patch, "patch_size": patch, "hidden_size": channels,
                "mask_input_channels": shapes["prompt_encoder.mask_downscaling.3.weight"][0],
            },
            mask_decoder_config={
                "hidden_size": channels, "mlp_dim": mixing, "num_attention_heads": 8,
                "iou_head_hidden_dim":
                    shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
                "layer_norm_eps": 1e-5,
            },
        )  # fmt: skip
        clip = CLIPTextConfig(
            vocab_size=words, hidden_size=text_width, eos_token_id=words - 1,
            bos_token_id=words - 2, num_hidden_layers=_count(shapes, f"{text}encoder.layers."),
            num_attention_heads=text_heads or max(text_width // 64, 1),
            intermediate_size=shapes[f"{text}encoder.layers.0.mlp.fc1.weight"][0],
            max_position_embeddings=shapes[f"{text}embeddings.position_embedding.weight"][0],
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        raise ModelError(f"these are not IMIS-Net's weights: {error} is missing") from error
    return sam, clip


def _count(shapes: Mapping[str, Any], start: str) -> int:
    return len({name[len(start) :].split(".")[0] for name in shapes if name.startswith(start)})


@dataclass
class ImisSegmenter:
    """IMIS-Net behind its input convention; the last image's embedding is kept."""

    net: IMISNet
    tokenizer: Tokenizer
    _image: MedicalImage | None = None

    def __call__(self, image: MedicalImage, phrase: str) -> Found:
        """What the phrase names."""
        name = re.sub("[-_]", " ", phrase.lower())
        ids = self.tokenizer.encode(TEMPLATE.format(name)).ids
        if ids[-1] != self.net.text_model.config.eos_token_id:
            raise ModelError("IMIS-Net reads CLIP's own tokens; give CLIP's tokenizer.json")
        cut = [*ids[: self._longest - 1], ids[-1]] if len(ids) > self._longest else ids
        return Found(self.segment(image, ids=cut), text=phrase)

    def in_box(self, image: MedicalImage, box: Box) -> Mask:
        """What fills the box, xyxy px."""
        x1, y1, x2, y2 = box
        return self.segment(image, box=(x1, y1, x2 - _BOX_IS_INCLUSIVE, y2 - _BOX_IS_INCLUSIVE))

    @property
    def _longest(self) -> int:
        return self.net.text_model.config.max_position_embeddings

    @torch.inference_mode()
    def segment(
        self, image: MedicalImage, ids: list[int] | None = None, box: Box | None = None
    ) -> Mask:
        """(H, W) bool; box with right and bottom inclusive."""
        side, device = self.net.image_size, self.net.text_out_dim.weight.device
        if self._image is not image:
            pixels = torch.from_numpy(square_input(image.display, side))[None]
            self._embedding, self._image = self.net.encode(pixels.to(device)), image
        scale = np.array([side / image.width, side / image.height] * 2)
        where = None if box is None else torch.tensor(np.array(box) * scale, dtype=torch.float32)
        text = None if ids is None else self.net.embed_text(torch.tensor([ids], device=device))
        masks, quality = self.net.decode(
            self._embedding, None if where is None else where.to(device), text
        )
        best = masks[int(quality.argmax())][None, None]
        for shape in ((side, side), (image.height, image.width)):
            best = F.interpolate(best, shape, mode="bilinear", align_corners=False)
        return (best[0, 0] > 0).cpu().numpy()


def square_input(display: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (3, S, S) float32."""
    square = Image.fromarray(display).resize((side, side), Image.Resampling.NEAREST)
    normal = (np.asarray(square, np.float32) - IMAGENET_MEAN) / IMAGENET_STD
    return normal.transpose(2, 0, 1).astype(np.float32)
