"""Configurations from the shapes of converted weights, and from what is written beside them.

Shapes tell everything but the number of attention heads, a few constants, and which of two
preprocessings a SAM was trained with; a `config.json` beside the weights does, or a
`tiny_config.json` with the sections `llm`, `clip` and `sam`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    PreTrainedConfig,
    SamConfig,
)

from ...errors import ModelError
from ..configuration import SegmenterConfig, TinyViTConfig

Shapes = Mapping[str, tuple[int, ...]]

LANGUAGE, TOWER = "mllm.model.language_model.", "mllm.model.vision_tower."
PROJECTOR, SEGMENTER = "mllm.model.multi_modal_projector.", "segmenter."
HEAD_SIZE, TOWER_HEAD_SIZE = 128, 64
"""Of every Llama and Mistral of 7B or 13B, and of CLIP."""


@dataclass(frozen=True)
class Beside:
    """What files beside the weights state, by part; and LoRA's alpha."""

    llm: Mapping[str, Any] = field(default_factory=dict)
    clip: Mapping[str, Any] = field(default_factory=dict)
    sam: Mapping[str, Any] = field(default_factory=dict)
    segmenter: Mapping[str, Any] = field(default_factory=dict)
    tokens: Mapping[str, Any] = field(default_factory=dict)
    lora_alpha: float = 16.0

    @classmethod
    def read(cls, folders: Sequence[Path]) -> Beside:
        """From the folders' JSON files.

        Raises:
            ModelError: a file that is no JSON.
        """
        tiny = next(iter(_tables(folders, "tiny_config.json")), {})
        adapter = next(iter(_tables(folders, "adapter_config.json")), {})
        theirs = {_part(values): values for values in _tables(folders, "config.json")}
        llm, clip = theirs.get("llm", {}), theirs.get("clip", {})
        alpha = adapter.get("lora_alpha") or tiny.get("lora", {}).get("alpha") or 16
        return cls(
            llm=tiny.get("llm") or llm.get("text_config") or llm,
            clip=tiny.get("clip")
            or clip.get("vision_config")
            or clip
            or llm.get("vision_config", {}),
            sam=tiny.get("sam") or {},
            segmenter=theirs.get("segmenter", {}),
            tokens=tiny.get("tokens") or {},
            lora_alpha=float(alpha),
        )


def _part(values: Mapping[str, Any]) -> str:
    kind = str(values.get("model_type", ""))
    return {"medisee_segmenter": "segmenter", "sam": "sam"}.get(
        kind, "clip" if kind.startswith("clip") else "llm"
    )


def _tables(folders: Iterable[Path], name: str) -> list[dict[str, Any]]:
    """The JSON objects called `name` in the folders."""
    found = []
    for path in (folder / name for folder in folders):
        if path.is_file():
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ModelError(f"{path} is no JSON") from error
            found.append(values if isinstance(values, dict) else {})
    return found


def count(shapes: Shapes, start: str) -> int:
    """How many layers there are below `start`."""
    numbers = (re.match(re.escape(start) + r"(\d+)\.", name) for name in shapes)
    return 1 + max((int(found[1]) for found in numbers if found), default=-1)


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ModelError(f"the checkpoint is incomplete: {name} is missing")
    return shapes[name]


def language_config(shapes: Shapes, beside: Beside) -> PreTrainedConfig:
    """A Llama, or a Mistral where heads share keys and values."""
    vocabulary, width = _shape(shapes, f"{LANGUAGE}embed_tokens.weight")
    layer = f"{LANGUAGE}layers.0."
    queries = _shape(shapes, f"{layer}self_attn.q_proj.weight")[0]
    keys = _shape(shapes, f"{layer}self_attn.k_proj.weight")[0]
    heads = int(beside.llm.get("num_attention_heads") or max(queries // HEAD_SIZE, 1))
    grouped = keys < queries
    rope = (beside.llm.get("rope_parameters") or {}).get("rope_theta")
    theta = rope or beside.llm.get("rope_theta") or (1e6 if grouped else 1e4)
    values: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _shape(shapes, f"{layer}mlp.gate_proj.weight")[0],
        "num_hidden_layers": count(shapes, f"{LANGUAGE}layers."),
        "num_attention_heads": heads,
        "num_key_value_heads": keys * heads // queries,
        "head_dim": queries // heads,
        "rms_norm_eps": beside.llm.get("rms_norm_eps", 1e-5),
        "max_position_embeddings": beside.llm.get(
            "max_position_embeddings", 32768 if grouped else 4096
        ),
        "rope_parameters": {"rope_theta": float(theta), "rope_type": "default"},
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if not grouped:
        return LlamaConfig(**values)
    return MistralConfig(**values, sliding_window=beside.llm.get("sliding_window"))


def tower_config(shapes: Shapes, beside: Beside) -> CLIPVisionConfig:
    """CLIP's vision tower."""
    width = _shape(shapes, f"{TOWER}embeddings.class_embedding")[0]
    patch = _shape(shapes, f"{TOWER}embeddings.patch_embedding.weight")[-1]
    places = _shape(shapes, f"{TOWER}embeddings.position_embedding.weight")[0]
    heads = beside.clip.get("num_attention_heads") or max(width // TOWER_HEAD_SIZE, 1)
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=_shape(shapes, f"{TOWER}encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=count(shapes, f"{TOWER}encoder.layers."),
        num_attention_heads=heads,
        patch_size=patch,
        image_size=round((places - 1) ** 0.5) * patch,
        projection_dim=beside.clip.get("projection_dim", 768),
        hidden_act=beside.clip.get("hidden_act", "quick_gelu"),
        layer_norm_eps=beside.clip.get("layer_norm_eps", 1e-5),
    )


def llava_config(shapes: Shapes, beside: Beside, linear: bool, image_token: int) -> LlavaConfig:
    """LLaVA: tower, projector and language model.

    Args:
        linear: the projector is one matrix, so that nothing may come between the two of ours.
        image_token: id that stands for an image token.
    """
    tower = tower_config(shapes, beside)
    return LlavaConfig(
        vision_config=tower,
        text_config=language_config(shapes, beside),
        image_token_id=image_token,
        image_seq_length=(tower.image_size // tower.patch_size) ** 2,
        projector_hidden_act="linear" if linear else "gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


MEDSAM_INPUT = {"normalisation": "minmax", "pad": False}
SAM_INPUT = {"normalisation": "imagenet", "pad": True}
_INPUTS = {
    "tinyvit": {"normalisation": "minmax", "pad": True},
    "sam-med2d": {"normalisation": "imagenet", "pad": False},
}
"""How an image is brought to the square, by encoder; of plain SAM, its keys do not tell."""


def encoder_of(shapes: Shapes) -> str:
    """Which image encoder the names are of, as `SegmenterConfig` calls it."""
    start = f"{SEGMENTER}vision_encoder."
    if any(name.startswith(f"{start}patch_embed.seq.") for name in shapes):
        return "tinyvit"
    return "sam-med2d" if f"{start}layers.0.mlp.adapter.norm.weight" in shapes else "sam"


def segmenter_config(
    shapes: Shapes, beside: Beside, plain_input: Mapping[str, Any]
) -> SegmenterConfig:
    """SAM's family: image encoder, prompt encoder and mask decoder.

    Args:
        plain_input: what a ViT without adapters expects: SAM's or MedSAM's.
    """
    encoder = encoder_of(shapes)
    expects = dict(_INPUTS.get(encoder, plain_input))
    expects |= {key: beside.segmenter[key] for key in expects if key in beside.segmenter}
    tiny_vit = encoder == "tinyvit"
    vision = _TINY_VIT if tiny_vit else _vit(shapes)
    size, patch = vision["image_size"], vision["patch_size"]
    decoder = f"{SEGMENTER}mask_decoder."
    layer = f"{decoder}transformer.layers.0."
    channels = _shape(shapes, f"{SEGMENTER}prompt_encoder.no_mask_embed.weight")[1]
    cross = _shape(shapes, f"{layer}cross_attn_token_to_image.q_proj.weight")[0]
    sam = SamConfig(
        vision_config=vision | {"num_pos_feats": channels // 2, "output_channels": channels},
        prompt_encoder_config={
            "image_size": size,
            "patch_size": patch,
            "hidden_size": channels,
            "mask_input_channels": _shape(
                shapes, f"{SEGMENTER}prompt_encoder.mask_embed.conv2.weight"
            )[0],
        },
        mask_decoder_config={
            "hidden_size": channels,
            "mlp_dim": _shape(shapes, f"{layer}mlp.lin1.weight")[0],
            "num_hidden_layers": count(shapes, f"{decoder}transformer.layers."),
            "num_attention_heads": beside.sam.get("decoder_heads", 8),
            "attention_downsample_rate": channels // cross,
            "num_multimask_outputs": _shape(shapes, f"{decoder}mask_tokens.weight")[0] - 1,
            "iou_head_depth": 2 + count(shapes, f"{decoder}iou_prediction_head.layers."),
            "iou_head_hidden_dim": _shape(
                shapes, f"{decoder}iou_prediction_head.proj_in.weight"
            )[0],
        },
    )  # fmt: skip
    return SegmenterConfig(encoder, sam, TinyViTConfig() if tiny_vit else None, **expects)


# LiteMedSAM has one published size. Its ViT is not built; of the ViT's configuration only the
# positional encoding's width is used.
_TINY_VIT: dict[str, Any] = {"image_size": 256, "patch_size": 4}


def _vit(shapes: Shapes) -> dict[str, Any]:
    """SAM's ViT; the reach of each layer's relative positions tells windows from whole grids."""
    encoder = f"{SEGMENTER}vision_encoder."
    width, _, patch, _ = _shape(shapes, f"{encoder}patch_embed.projection.weight")
    side = _shape(shapes, f"{encoder}pos_embed")[1]
    depth = count(shapes, f"{encoder}layers.")
    reach = [_shape(shapes, f"{encoder}layers.{n}.attn.rel_pos_h") for n in range(depth)]
    windows = {(length + 1) // 2 for length, _ in reach if length != 2 * side - 1}
    if len(windows) > 1:
        raise ModelError(f"the image encoder has windows of several sizes: {sorted(windows)}")
    mlp = _shape(shapes, f"{encoder}layers.0.mlp.lin1.weight")[0]
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // reach[0][1],
        "mlp_dim": mlp,
        "mlp_ratio": mlp / width,
        "image_size": side * patch,
        "patch_size": patch,
        "window_size": windows.pop() if windows else 14,
        "global_attn_indexes": [n for n in range(depth) if reach[n][0] == 2 * side - 1],
    }
