"""Builds an untrained nano from its two parents: LiteMedSAM and SmolLM2-135M-Instruct.

The language model keeps a few of its thirty layers (the first two and the last two matter most)
and the first part of its vocabulary. Byte-level BPE numbers its tokens in the order of its
merges, so the first part is a complete, smaller tokenizer: rarer words fall into more pieces.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import LlamaConfig, SamConfig

from ..errors import ModelError
from ..model import (
    MediSeeConfig,
    MediSeeModel,
    SegmenterConfig,
    SharedEncoderConfig,
    candidate_tokens,
)
from ..processing import MediSeeProcessor, ProcessorConfig, PromptTemplate

IMAGE_TOKEN = "<image>"
CHATML = PromptTemplate(
    prefix=f"<|im_start|>user\n{IMAGE_TOKEN}",
    question="\n{}<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
    next_round="\n<|im_start|>user",
)


@dataclass(frozen=True)
class NanoSizes:
    """What is kept of the parents, and the sizes of the heads."""

    layers: tuple[int, ...] = (0, 1, 6, 11, 15, 19, 28, 29)
    vocabulary: int = 20480
    grid: int = 8
    num_candidates: int = 2
    box_decoder: str = "grounded"
    fusion: str = "soft"


def build_nano(
    segmenter_weights: dict[str, Tensor],
    language_weights: dict[str, Tensor],
    language_config: LlamaConfig,
    tokenizer_json: Path,
    sizes: NanoSizes | None = None,
) -> tuple[MediSeeModel, MediSeeProcessor]:
    """An untrained nano.

    Args:
        segmenter_weights: LiteMedSAM's state dict under its own names.
        language_weights: SmolLM2's state dict under transformers' names.
        language_config: SmolLM2's configuration.
        tokenizer_json: SmolLM2's `tokenizer.json`.
    """
    sizes = sizes or NanoSizes()
    tokenizer = cut_tokenizer(tokenizer_json, sizes.vocabulary)
    names = candidate_tokens(sizes.num_candidates)
    tokenizer.add_special_tokens([AddedToken(n, special=True) for n in [IMAGE_TOKEN, *names]])
    text = LlamaConfig(
        **{
            **language_config.to_dict(),
            "num_hidden_layers": len(sizes.layers),
            "vocab_size": tokenizer.get_vocab_size(),
            "pad_token_id": None,
        }
    )
    mllm = SharedEncoderConfig(
        text,
        sizes.grid,
        image_token_id=tokenizer.token_to_id(IMAGE_TOKEN),
        tie_word_embeddings=True,
    )
    config = MediSeeConfig(
        mllm=mllm,
        segmenter=litemedsam_config(),
        num_candidates=sizes.num_candidates,
        candidate_token_ids=[tokenizer.token_to_id(name) for name in names],
        fusion=sizes.fusion,
        box_decoder=sizes.box_decoder,
    )
    model = MediSeeModel(config)
    model.segmenter.load_state_dict(litemedsam_state(segmenter_weights))
    _load_language(model, language_weights, sizes)
    processor_config = ProcessorConfig(
        template=CHATML,
        candidates=tuple(names),
        image_token=IMAGE_TOKEN,
        image_seq_length=mllm.image_seq_length,
        segmenter_size=config.segmenter.image_size,
        normalisation=config.segmenter.normalisation,
        pad=config.segmenter.pad,
    )
    return model, MediSeeProcessor(processor_config, tokenizer)


def litemedsam_config() -> SegmenterConfig:
    """LiteMedSAM: TinyViT at 256 px, SAM's prompt encoder and mask decoder, 64 x 64 embedding."""
    # The ViT is not built; of its configuration only the positional encoding's width is used.
    sam = SamConfig(
        vision_config={"image_size": 256, "patch_size": 4, "num_pos_feats": 128},
        prompt_encoder_config={"image_size": 256, "patch_size": 4},
    )
    return SegmenterConfig(encoder="tinyvit", sam_config=sam, normalisation="minmax", pad=True)


_SAM_RENAMES = [  # LiteMedSAM's (and SAM's own) names -> transformers'
    ("image_encoder.", "vision_encoder."),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
     "prompt_encoder.shared_embedding.positional_embedding"),
    ("prompt_encoder.point_embeddings.", "prompt_encoder.point_embed."),
    ("prompt_encoder.mask_downscaling.0.", "prompt_encoder.mask_embed.conv1."),
    ("prompt_encoder.mask_downscaling.1.", "prompt_encoder.mask_embed.layer_norm1."),
    ("prompt_encoder.mask_downscaling.3.", "prompt_encoder.mask_embed.conv2."),
    ("prompt_encoder.mask_downscaling.4.", "prompt_encoder.mask_embed.layer_norm2."),
    ("prompt_encoder.mask_downscaling.6.", "prompt_encoder.mask_embed.conv3."),
    ("mask_decoder.output_upscaling.0.", "mask_decoder.upscale_conv1."),
    ("mask_decoder.output_upscaling.1.", "mask_decoder.upscale_layer_norm."),
    ("mask_decoder.output_upscaling.3.", "mask_decoder.upscale_conv2."),
    ("transformer.norm_final_attn", "transformer.layer_norm_final_attn"),
]  # fmt: skip


def litemedsam_state(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """LiteMedSAM's state dict under the names of `Segmenter`."""
    renamed = {_segmenter_name(name): value for name, value in weights.items()}
    positions = renamed["prompt_encoder.shared_embedding.positional_embedding"]
    renamed["shared_image_embedding.positional_embedding"] = positions
    return renamed


def _segmenter_name(name: str) -> str:
    for old, new in _SAM_RENAMES:
        name = name.replace(old, new)
    if name.startswith("mask_decoder.transformer.layers."):
        name = re.sub(r"\.norm(\d)\.", r".layer_norm\1.", name)
    return re.sub(
        r"(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.(\d)\.",
        lambda m: f"{m[1]}.{('proj_in', 'layers.0', 'proj_out')[int(m[2])]}.",
        name,
    )


def cut_tokenizer(tokenizer_json: Path, size: int) -> Tokenizer:
    """The first `size` tokens of a byte-level BPE tokenizer, as a tokenizer of its own."""
    values = json.loads(tokenizer_json.read_text())
    vocabulary = {token: i for token, i in values["model"]["vocab"].items() if i < size}
    merges = [
        tuple(m) if not isinstance(m, str) else tuple(m.split(" "))
        for m in values["model"]["merges"]
    ]
    values["model"]["vocab"] = vocabulary
    values["model"]["merges"] = [list(m) for m in merges if "".join(m) in vocabulary]
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"].startswith("<|")]
    return Tokenizer.from_str(json.dumps(values))


def _load_language(model: MediSeeModel, weights: dict[str, Tensor], sizes: NanoSizes) -> None:
    """Copies the kept layers and embeddings; new tokens start at the mean embedding."""
    target = model.mllm.language_model
    state = {"norm.weight": weights["model.norm.weight"]}
    for new, old in enumerate(sizes.layers):
        start = f"model.layers.{old}."
        layer = {n[len(start) :]: v for n, v in weights.items() if n.startswith(start)}
        if not layer:
            raise ModelError(f"the language model has no layer {old}")
        state.update({f"layers.{new}.{name}": value for name, value in layer.items()})
    missing, unexpected = target.load_state_dict(state, strict=False)
    if unexpected or set(missing) != {"embed_tokens.weight"}:
        raise ModelError(f"the language model's weights do not fit: {missing} {unexpected}")
    embeddings = weights["model.embed_tokens.weight"]
    with torch.no_grad():
        target.embed_tokens.weight[:] = embeddings.mean(dim=0)
        target.embed_tokens.weight[: sizes.vocabulary] = embeddings[: sizes.vocabulary]
