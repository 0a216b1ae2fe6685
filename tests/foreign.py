"""Key lists of other people's checkpoints at any size, under their own names, and random weights.

Written from the published architectures, apart from the key maps that they test.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

Keys = dict[str, tuple[int, ...]]


def linear(name: str, into: int, out: int, bias: bool = True) -> Keys:
    keys: Keys = {f"{name}.weight": (out, into)}
    return keys | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, width: int) -> Keys:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


@dataclass(frozen=True)
class Language:
    """Llama or Mistral."""

    width: int = 32
    hidden: int = 48
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 40

    @property
    def head(self) -> int:
        return self.width // self.heads


MISTRAL_7B = Language(4096, 14336, 32, 32, 8, 32000)
LLAMA_7B = Language(4096, 11008, 32, 32, 32, 32000)
LLAMA_13B = Language(5120, 13824, 40, 40, 40, 32000)


def language(size: Language, added: int = 0) -> Keys:
    rows = size.vocabulary + added
    keys: Keys = {
        "model.embed_tokens.weight": (rows, size.width),
        "model.norm.weight": (size.width,),
        "lm_head.weight": (rows, size.width),
    }
    for n in range(size.layers):
        layer, kv = f"model.layers.{n}", size.head * size.kv_heads
        keys |= linear(f"{layer}.self_attn.q_proj", size.width, size.width, False)
        keys |= linear(f"{layer}.self_attn.k_proj", size.width, kv, False)
        keys |= linear(f"{layer}.self_attn.v_proj", size.width, kv, False)
        keys |= linear(f"{layer}.self_attn.o_proj", size.width, size.width, False)
        keys |= linear(f"{layer}.mlp.gate_proj", size.width, size.hidden, False)
        keys |= linear(f"{layer}.mlp.up_proj", size.width, size.hidden, False)
        keys |= linear(f"{layer}.mlp.down_proj", size.hidden, size.width, False)
        keys[f"{layer}.input_layernorm.weight"] = (size.width,)
        keys[f"{layer}.post_attention_layernorm.weight"] = (size.width,)
    return keys


@dataclass(frozen=True)
class Tower:
    """CLIP's vision transformer; heads of 64 numbers."""

    width: int = 64
    hidden: int = 96
    layers: int = 3
    image: int = 28
    patch: int = 14


CLIP_L_336 = Tower(1024, 4096, 24, 336)
CLIP_L_224 = Tower(1024, 4096, 24, 224)


def tower(size: Tower, start: str = "model.vision_tower.vision_tower.vision_model.") -> Keys:
    places = (size.image // size.patch) ** 2 + 1
    keys: Keys = {
        f"{start}embeddings.class_embedding": (size.width,),
        f"{start}embeddings.patch_embedding.weight": (size.width, 3, size.patch, size.patch),
        f"{start}embeddings.position_embedding.weight": (places, size.width),
    }
    keys |= norm(f"{start}pre_layrnorm", size.width) | norm(f"{start}post_layernorm", size.width)
    for n in range(size.layers):
        layer = f"{start}encoder.layers.{n}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            keys |= linear(f"{layer}.self_attn.{name}", size.width, size.width)
        keys |= norm(f"{layer}.layer_norm1", size.width) | norm(f"{layer}.layer_norm2", size.width)
        keys |= linear(f"{layer}.mlp.fc1", size.width, size.hidden)
        keys |= linear(f"{layer}.mlp.fc2", size.hidden, size.width)
    return keys


def clip(size: Tower) -> Keys:
    """A whole CLIP's file, of which only the vision tower is used."""
    beside: Keys = {
        "logit_scale": (),
        "text_model.final_layer_norm.weight": (8,),
        "text_projection.weight": (8, 8),
        "visual_projection.weight": (8, size.width),
        "vision_model.embeddings.position_ids": (1, (size.image // size.patch) ** 2 + 1),
    }
    return beside | tower(size, "vision_model.")


def mlp_projector(tower_size: Tower, size: Language) -> Keys:
    first = linear("model.mm_projector.0", tower_size.width, size.width)
    return first | linear("model.mm_projector.2", size.width, size.width)


def llava(size: Language, tower_size: Tower, added: int = 0, with_tower: bool = True) -> Keys:
    keys = language(size, added) | mlp_projector(tower_size, size)
    return keys | (tower(tower_size) if with_tower else {})


@dataclass(frozen=True)
class Sam:
    """SAM's ViT and its decoder; `whole` are the layers that attend to the whole grid."""

    width: int = 16
    layers: int = 2
    heads: int = 2
    whole: tuple[int, ...] = (1,)
    image: int = 64
    window: int = 3
    channels: int = 32
    decoder_mlp: int = 32
    iou_hidden: int = 32


SAM_B = Sam(768, 12, 12, (2, 5, 8, 11), 1024, 14, 256, 2048, 256)
SAM_L = Sam(1024, 24, 16, (5, 11, 17, 23), 1024, 14, 256, 2048, 256)
SAM_H = Sam(1280, 32, 16, (7, 15, 23, 31), 1024, 14, 256, 2048, 256)


def sam(size: Sam, start: str = "", adapters: bool = False) -> Keys:
    grid, width = size.image // 16, size.width
    keys: Keys = {f"{start}image_encoder.pos_embed": (1, grid, grid, width)}
    keys[f"{start}image_encoder.patch_embed.proj.weight"] = (width, 3, 16, 16)
    keys[f"{start}image_encoder.patch_embed.proj.bias"] = (width,)
    for n in range(size.layers):
        block = f"{start}image_encoder.blocks.{n}"
        reach = 2 * (grid if n in size.whole else size.window) - 1
        keys |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        keys[f"{block}.attn.rel_pos_h"] = (reach, width // size.heads)
        keys[f"{block}.attn.rel_pos_w"] = (reach, width // size.heads)
        keys |= linear(f"{block}.attn.qkv", width, 3 * width)
        keys |= linear(f"{block}.attn.proj", width, width)
        keys |= linear(f"{block}.mlp.lin1", width, 4 * width)
        keys |= linear(f"{block}.mlp.lin2", 4 * width, width)
        keys |= adapter(f"{block}.Adapter", width) if adapters else {}
    neck = f"{start}image_encoder.neck"
    keys[f"{neck}.0.weight"] = (size.channels, width, 1, 1)
    keys[f"{neck}.2.weight"] = (size.channels, size.channels, 3, 3)
    keys |= norm(f"{neck}.1", size.channels) | norm(f"{neck}.3", size.channels)
    return keys | prompts(size, f"{start}prompt_encoder") | masks(size, f"{start}mask_decoder")


def adapter(name: str, width: int) -> Keys:
    return norm(f"{name}.norm", width) | {
        f"{name}.channel.0.weight": (width // 4, width),
        f"{name}.channel.2.weight": (width, width // 4),
        f"{name}.spatial.0.weight": (width, width, 3, 3),
        f"{name}.spatial.2.weight": (width, width, 4, 4),
    }


def prompts(size: Sam, name: str) -> Keys:
    channels = size.channels
    keys: Keys = {f"{name}.pe_layer.positional_encoding_gaussian_matrix": (2, channels // 2)}
    keys |= {f"{name}.point_embeddings.{n}.weight": (1, channels) for n in range(4)}
    keys[f"{name}.not_a_point_embed.weight"] = (1, channels)
    keys[f"{name}.no_mask_embed.weight"] = (1, channels)
    for n, shape in ((0, (4, 1, 2, 2)), (3, (16, 4, 2, 2)), (6, (channels, 16, 1, 1))):
        keys[f"{name}.mask_downscaling.{n}.weight"] = shape
        keys[f"{name}.mask_downscaling.{n}.bias"] = shape[:1]
    return keys | norm(f"{name}.mask_downscaling.1", 4) | norm(f"{name}.mask_downscaling.4", 16)


def masks(size: Sam, name: str) -> Keys:
    c, keys = size.channels, {}
    for n in range(2):
        layer = f"{name}.transformer.layers.{n}"
        keys |= attention(f"{layer}.self_attn", c, c)
        keys |= attention(f"{layer}.cross_attn_token_to_image", c, c // 2)
        keys |= attention(f"{layer}.cross_attn_image_to_token", c, c // 2)
        for k in range(1, 5):
            keys |= norm(f"{layer}.norm{k}", c)
        keys |= linear(f"{layer}.mlp.lin1", c, size.decoder_mlp)
        keys |= linear(f"{layer}.mlp.lin2", size.decoder_mlp, c)
    keys |= attention(f"{name}.transformer.final_attn_token_to_image", c, c // 2)
    keys |= norm(f"{name}.transformer.norm_final_attn", c)
    keys |= {f"{name}.iou_token.weight": (1, c), f"{name}.mask_tokens.weight": (4, c)}
    for n, shape in ((0, (c, c // 4, 2, 2)), (3, (c // 4, c // 8, 2, 2))):
        keys[f"{name}.output_upscaling.{n}.weight"] = shape
        keys[f"{name}.output_upscaling.{n}.bias"] = shape[1:2]
    keys |= norm(f"{name}.output_upscaling.1", c // 4)
    for n in range(4):
        keys |= three(f"{name}.output_hypernetworks_mlps.{n}.layers", c, c, c // 8)
    return keys | three(f"{name}.iou_prediction_head.layers", c, size.iou_hidden, 4)


def attention(name: str, width: int, inner: int) -> Keys:
    keys: Keys = {}
    for part in ("q_proj", "k_proj", "v_proj"):
        keys |= linear(f"{name}.{part}", width, inner)
    return keys | linear(f"{name}.out_proj", inner, width)


def three(name: str, into: int, hidden: int, out: int) -> Keys:
    keys = linear(f"{name}.0", into, hidden) | linear(f"{name}.1", hidden, hidden)
    return keys | linear(f"{name}.2", hidden, out)


def projector(width: int, channels: int) -> Keys:
    first = linear("model.text_hidden_fcs.0.0", width, width)
    return first | linear("model.text_hidden_fcs.0.2", width, channels)


@dataclass(frozen=True)
class Whole:
    """A whole model: language, tower, segmenter."""

    language: Language = field(default_factory=Language)
    tower: Tower = field(default_factory=Tower)
    sam: Sam = field(default_factory=Sam)


def medisee(size: Whole, router: int = 12, box: int = 24) -> Keys:
    """The authors' MediSee, LoRA merged."""
    width = size.language.width
    keys = llava(size.language, size.tower, added=2) | sam(size.sam, "model.visual_model.")
    keys |= projector(width, size.sam.channels) | three("model.bbox_decoder.layers", width, box, 4)
    for name in ("model.router_seg.gate", "model.router_box.gate"):
        keys |= linear(f"{name}.0", 2 * width, router) | linear(f"{name}.2", router, 2)
    return keys


def lisa(size: Whole) -> Keys:
    """LISA: a projector of one matrix; its files come without the vision tower."""
    keys = language(size.language, added=3) | sam(size.sam, "model.visual_model.")
    keys |= projector(size.language.width, size.sam.channels)
    return keys | linear("model.mm_projector", size.tower.width, size.language.width)


def read(size: Whole) -> Keys:
    """READ: LISA's form on LLaVA-1.5."""
    keys = llava(size.language, size.tower, added=3, with_tower=False)
    keys |= projector(size.language.width, size.sam.channels)
    return keys | sam(size.sam, "model.visual_model.")


def with_lora(keys: Keys, rank: int = 4, base_layer: bool = True) -> Keys:
    """The same as peft keeps it before merging: queries and values have LoRA apart."""
    found: Keys = {}
    for name, shape in keys.items():
        adapted = name.startswith("model.layers.") and (".q_proj." in name or ".v_proj." in name)
        start = f"base_model.model.{name.removesuffix('.weight')}"
        if not adapted:
            found[f"base_model.model.{name}"] = shape
            continue
        found[f"{start}.base_layer.weight" if base_layer else f"{start}.weight"] = shape
        found[f"{start}.lora_A.default.weight"] = (rank, shape[1])
        found[f"{start}.lora_B.default.weight"] = (shape[0], rank)
    return found


def random_weights(keys: Keys, seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep signals at size one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in keys.items():
        value = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            weights[name] = value / max(value[0].numel(), 1) ** 0.5
        else:
            weights[name] = value * 0.1 + (0.0 if name.endswith("bias") else 1.0)
    return weights
