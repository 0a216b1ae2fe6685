"""Models with random weights in the shape of real ones: memory, speed and the whole path without
the real weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, MistralConfig, SamConfig

from ..calibration import Calibration
from ..errors import ModelError
from ..processing import MediSeeProcessor
from .configuration import MediSeeConfig, SegmenterConfig
from .convert import expected_shapes
from .convert.writing import Progress, bytes_of, new_folder, write_shards

SHAPES: dict[str, dict[str, Any]] = {
    "llava-med-7b": {
        "heads": 32, "kv_share": 4, "layers": 32, "mlp": 3.5, "grouped": True, "vocabulary": 32002,
        "tower": 336, "sam": (768, 12, 12),
    },
    "lisa-7b": {
        "heads": 32, "kv_share": 1, "layers": 32, "mlp": 2.6875, "grouped": False,
        "vocabulary": 32003, "tower": 224, "sam": (1280, 32, 16),
    },
}  # fmt: skip
"""Language model, side of CLIP's input, and width, depth and heads of SAM's ViT."""

_HEAD, _CLIP = 128, (1024, 24)


def random_config(like: str, scale: float = 1.0) -> MediSeeConfig:
    """The configuration of a MediSee like `like`, with about `scale` of its numbers.

    Depth and width shrink alike, by the cube root; head size, image sizes, vocabulary and the
    mask decoder stay.

    Raises:
        ModelError: no such shape, or a scale outside 0..1.
    """
    if like not in SHAPES:
        raise ModelError(f"there is no shape {like!r}; choose {', '.join(SHAPES)}")
    if not 0 < scale <= 1:
        raise ModelError(f"the scale is {scale}; it must be above 0 and at most 1")
    shape, root = SHAPES[like], scale ** (1 / 3)
    heads = max(round(shape["heads"] * root / shape["kv_share"]), 1) * shape["kv_share"]
    width = heads * _HEAD
    values: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": int(width * shape["mlp"]),
        "num_hidden_layers": max(round(shape["layers"] * root), 1),
        "num_attention_heads": heads,
        "num_key_value_heads": heads // shape["kv_share"],
        "vocab_size": shape["vocabulary"],
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    text = (
        MistralConfig(**values, sliding_window=None) if shape["grouped"] else LlamaConfig(**values)
    )
    return MediSeeConfig(
        mllm=_llava(text, shape["tower"], root),
        segmenter=_sam(shape["sam"], root),
        candidate_token_ids=[1, 2],  # until the tokenizer is known
        router_hidden=max(width // 4, 8),
    )


def _llava(text: Any, side: int, root: float) -> LlavaConfig:
    width = max(round(_CLIP[0] * root / 64), 1) * 64
    tower = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=max(round(_CLIP[1] * root), 2),
        num_attention_heads=width // 64,
        image_size=side,
        patch_size=14,
    )
    return LlavaConfig(
        vision_config=tower, text_config=text, image_token_id=0,
        image_seq_length=(side // 14) ** 2, tie_word_embeddings=False,
    )  # fmt: skip


def _sam(size: tuple[int, int, int], root: float) -> SegmenterConfig:
    width, depth, heads = size
    head, layers = width // heads, max(round(depth * root), 4)
    heads = max(round(heads * root), 1)
    vision = {
        "hidden_size": heads * head, "num_hidden_layers": layers, "num_attention_heads": heads,
        "mlp_dim": 4 * heads * head,
        "global_attn_indexes": [layers * quarter // 4 - 1 for quarter in range(1, 5)],
    }  # fmt: skip
    return SegmenterConfig("sam", SamConfig(vision_config=vision), normalisation="imagenet")


def make_random(
    like: str,
    target: Path,
    tokenizer: Path,
    *,
    scale: float = 1.0,
    overwrite: bool = False,
    progress: Progress = lambda step: None,
) -> int:
    """Writes a model folder with random weights in bf16; returns how many numbers it holds.

    Args:
        tokenizer: a model folder whose tokenizer and template it takes.

    Raises:
        ModelError: see `random_config`; a tokenizer larger than the vocabulary.
    """
    config = random_config(like, scale)
    processor = _processor(config, tokenizer)
    shapes = expected_shapes(config)
    generator = torch.Generator().manual_seed(0)

    def load(name: str) -> Tensor:
        return _random(name, shapes[name], generator)

    with new_folder(target, overwrite) as folder:
        sizes = {name: bytes_of(shape, torch.bfloat16) for name, shape in shapes.items()}
        write_shards(sizes, load, folder, progress)
        config.dtype = torch.bfloat16
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        # It never refuses, so that the mask path runs as well.
        Calibration("isotonic", (0.0, 1.0), (0.0, 1.0)).save(folder / "calibration.json")
        card = "---\nlicense: cc0-1.0\n---\n\nRandom weights, for tests of memory and speed only.\n"
        (folder / "README.md").write_text(card, encoding="utf-8")
    return sum(math.prod(shape) for shape in shapes.values())


def _processor(config: MediSeeConfig, folder: Path) -> MediSeeProcessor:
    """The folder's processor with this model's images; sets the ids of the special tokens."""
    other = MediSeeProcessor.from_pretrained(folder)
    if other.tokenizer.get_vocab_size() > config.mllm.text_config.vocab_size:
        raise ModelError(f"the tokenizer of {folder} is larger than the vocabulary of the shape")
    values = replace(
        other.config,
        image_seq_length=config.image_seq_length,
        segmenter_size=config.segmenter.image_size,
        normalisation=config.segmenter.normalisation,
        pad=config.segmenter.pad,
        clip_size=config.mllm.vision_config.image_size,
    )
    ids = [other.tokenizer.token_to_id(name) for name in values.candidates]
    config.candidate_token_ids = [int(each or 0) for each in ids]
    config.mllm.image_token_id = other.tokenizer.token_to_id(values.image_token)
    return MediSeeProcessor(values, other.tokenizer)


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Weights that keep signals at size one; norms and biases as they start."""
    if len(shape) > 1:
        scale = (shape[1] * math.prod(shape[2:])) ** -0.5
        return torch.randn(shape, generator=generator, dtype=torch.float32).mul_(scale).bfloat16()
    return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
