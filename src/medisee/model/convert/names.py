"""Whose checkpoint it is, told by its keys, and one key map for each.

A map turns a foreign name into ours (those of `MediSeeModel`); rules are anchored at the start,
the first that fits is taken, and what follows the match is kept. A name that no rule of a source
fits is unknown, and the conversion stops.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...errors import ModelError

Rule = tuple[str, str | tuple[str, ...]]
"""Pattern and replacement; several replacements: stored under each; none: left out."""

DROPPED: tuple[str, ...] = ()

# Wrappers that say nothing of the weight: DataParallel's, and peft's (0.6 on adds `.base_layer`).
_WRAPPERS = re.compile(r"^(module\.)?(base_model\.model\.)?")
LORA = re.compile(r"^(.+)\.lora_([AB])(?:\.[^.]+)?\.weight$")

_PROMPTS_AND_MASKS: tuple[Rule, ...] = (
    (
        r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
        (
            "shared_image_embedding.positional_embedding",
            "prompt_encoder.shared_embedding.positional_embedding",
        ),
    ),
    (r"prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"prompt_encoder\.(not_a_point_embed|no_mask_embed)\.", r"prompt_encoder.\1."),
    (
        r"mask_decoder\.transformer\.layers\.(\d+)\.norm(\d)\.",
        r"mask_decoder.transformer.layers.\1.layer_norm\2.",
    ),
    (
        r"mask_decoder\.transformer\.norm_final_attn\.",
        "mask_decoder.transformer.layer_norm_final_attn.",
    ),
    (
        r"mask_decoder\.transformer\.(layers|final_attn_token_to_image)\.",
        r"mask_decoder.transformer.\1.",
    ),
    (r"mask_decoder\.(iou_token|mask_tokens)\.", r"mask_decoder.\1."),
    (r"mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (
        r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.0\.",
        r"mask_decoder.\1.proj_in.",
    ),
    (
        r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.1\.",
        r"mask_decoder.\1.layers.0.",
    ),
    (
        r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.2\.",
        r"mask_decoder.\1.proj_out.",
    ),
)
"""SAM's prompt encoder and mask decoder, as all of its family keep them."""

SAM: tuple[Rule, ...] = (
    (r"image_encoder\.pos_embed$", "vision_encoder.pos_embed"),
    (r"image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"image_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_encoder.layers.\1.layer_norm\2."),
    (r"image_encoder\.blocks\.(\d+)\.(attn|mlp)\.", r"vision_encoder.layers.\1.\2."),
    (r"image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"pixel_(mean|std)$", DROPPED),
    *_PROMPTS_AND_MASKS,
)

SAM_MED2D: tuple[Rule, ...] = (
    (r"image_encoder\.blocks\.(\d+)\.Adapter\.", r"vision_encoder.layers.\1.mlp.adapter."),
    *SAM,
)

LITEMEDSAM: tuple[Rule, ...] = (
    (r"image_encoder\.(patch_embed\.seq|layers|neck)\.", r"vision_encoder.\1."),
    *_PROMPTS_AND_MASKS,
)

SAM_TRANSFORMERS: tuple[Rule, ...] = (
    (
        r"shared_image_embedding\.positional_embedding$",
        (
            "shared_image_embedding.positional_embedding",
            "prompt_encoder.shared_embedding.positional_embedding",
        ),
    ),
    (r"prompt_encoder\.shared_embedding\.", DROPPED),  # the same numbers again
    (r"(vision_encoder|prompt_encoder|mask_decoder)\.", r"\1."),
)

CLIP: tuple[Rule, ...] = (
    (r"vision_model\.embeddings\.position_ids$", DROPPED),
    (r"vision_model\.", "model.vision_tower."),
    (r"(text_model|text_projection|visual_projection|logit_scale)\b", DROPPED),
)
"""CLIP's vision tower; its text side is not used."""

_LANGUAGE: tuple[Rule, ...] = (
    (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$", DROPPED),  # computed
    (r"model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
    (r"lm_head\.", "lm_head."),
)

_TOWER: tuple[Rule, ...] = (
    (r"model\.vision_tower\.vision_tower\.vision_model\.embeddings\.position_ids$", DROPPED),
    (r"model\.vision_tower\.vision_tower\.vision_model\.", "model.vision_tower."),
)

LLAVA: tuple[Rule, ...] = (
    *_LANGUAGE,
    *_TOWER,
    (r"model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
)

LLAVA_LINEAR: tuple[Rule, ...] = (
    *_LANGUAGE,
    *_TOWER,
    (r"model\.mm_projector\.", "model.multi_modal_projector.linear_1."),
)
"""The first LLaVA's projector is one matrix; the second of ours becomes the identity."""

LLAVA_TRANSFORMERS: tuple[Rule, ...] = (
    # transformers 4 ...
    (r"language_model\.model\.", "model.language_model."),
    (r"language_model\.lm_head\.", "lm_head."),
    (r"vision_tower\.vision_model\.embeddings\.position_ids$", DROPPED),
    (r"vision_tower\.vision_model\.", "model.vision_tower."),
    (r"multi_modal_projector\.", "model.multi_modal_projector."),
    # ... and 5
    (r"model\.vision_tower\.(vision_model\.)?", "model.vision_tower."),
    (r"model\.(language_model|multi_modal_projector)\.", r"model.\1."),
    (r"lm_head\.", "lm_head."),
)

MEDISEE_HEADS: tuple[Rule, ...] = (
    (r"model\.text_hidden_fcs\.0\.", "projector.layers."),
    (r"model\.bbox_decoder\.", "box_decoder.mlp."),
    (r"model\.router_seg\.", "fusion.router_seg."),
    (r"model\.router_box\.", "fusion.router_det."),
)

LISA_HEADS: tuple[Rule, ...] = MEDISEE_HEADS[:1]


@dataclass(frozen=True)
class KeyMap:
    """One table: names that begin with `start` (taken off) become ours below `ours`."""

    start: str
    ours: str
    rules: tuple[Rule, ...]

    def translate(self, name: str) -> tuple[str, ...] | None:
        """Our names for a foreign one; empty: left out on purpose; None: unknown here."""
        if not name.startswith(self.start):
            return None
        rest = name[len(self.start) :]
        for pattern, new in self.rules:
            found = re.match(pattern, rest)
            if found:
                names = (new,) if isinstance(new, str) else new
                return tuple(self.ours + found.expand(n) + rest[found.end() :] for n in names)
        return None


_VISUAL = KeyMap("model.visual_model.", "segmenter.", SAM)


@dataclass(frozen=True)
class Source:
    """A kind of checkpoint.

    Attributes:
        name: short, as the manifest states it.
        title: for people.
        part: what it gives: "whole", "mllm", "segmenter" or "tower" (CLIP alone).
        marks: patterns, each of which some key of it matches.
        maps: its key map.
    """

    name: str
    title: str
    part: str
    marks: tuple[str, ...]
    maps: tuple[KeyMap, ...]

    def translate(self, name: str) -> tuple[str, ...] | None:
        """See `KeyMap.translate`."""
        found = (table.translate(name) for table in self.maps)
        return next((names for names in found if names is not None), None)

    def fits(self, names: Sequence[str]) -> bool:
        """Whether every mark is there."""
        return all(any(re.match(mark, name) for name in names) for mark in self.marks)


_LISA_MARKS = (r"model\.visual_model\.", r"model\.text_hidden_fcs\.")

SOURCES: tuple[Source, ...] = (
    Source(
        "medisee",
        "the authors' MediSee",
        "whole",
        (r"model\.router_(seg|box)\.", r"model\.(visual_model|text_hidden_fcs)\."),
        (_VISUAL, KeyMap("", "", MEDISEE_HEADS), KeyMap("", "mllm.", LLAVA)),
    ),
    Source(
        "read",
        "READ",
        "whole",
        (*_LISA_MARKS, r"model\.mm_projector\.0\."),
        (_VISUAL, KeyMap("", "", LISA_HEADS), KeyMap("", "mllm.", LLAVA)),
    ),
    Source(
        "lisa",
        "LISA",
        "whole",
        _LISA_MARKS,
        (_VISUAL, KeyMap("", "", LISA_HEADS), KeyMap("", "mllm.", LLAVA_LINEAR)),
    ),
    Source(
        "llava-transformers",
        "LLaVA in transformers' layout",
        "mllm",
        (r"(model\.)?multi_modal_projector\.",),
        (KeyMap("", "mllm.", LLAVA_TRANSFORMERS),),
    ),
    Source(
        "llava",
        "LLaVA",
        "mllm",
        (r"model\.layers\.", r"model\.mm_projector\.0\."),
        (KeyMap("", "mllm.", LLAVA),),
    ),
    Source(
        "sam-med2d",
        "SAM-Med2D",
        "segmenter",
        (r"image_encoder\.blocks\.\d+\.Adapter\.",),
        (KeyMap("", "segmenter.", SAM_MED2D),),
    ),
    Source(
        "litemedsam",
        "LiteMedSAM",
        "segmenter",
        (r"image_encoder\.patch_embed\.seq\.",),
        (KeyMap("", "segmenter.", LITEMEDSAM),),
    ),
    Source(
        "sam",
        "SAM",
        "segmenter",
        (r"image_encoder\.blocks\.\d+\.attn\.rel_pos",),
        (KeyMap("", "segmenter.", SAM),),
    ),
    Source(
        "sam-transformers",
        "SAM in transformers' layout",
        "segmenter",
        (r"vision_encoder\.patch_embed\.",),
        (KeyMap("", "segmenter.", SAM_TRANSFORMERS),),
    ),
    Source(
        "clip",
        "CLIP's vision tower",
        "tower",
        (r"vision_model\.embeddings\.",),
        (KeyMap("", "mllm.", CLIP),),
    ),
)
"""In the order in which they are tried: what others are part of comes first."""


def plain_name(name: str) -> str:
    """A stored name without wrappers; LoRA's own matrices keep `.lora_A` and `.lora_B`."""
    return _WRAPPERS.sub("", name, count=1).replace(".base_layer.", ".")


def known(name: str) -> bool:
    """Whether any source has a place for a plain name."""
    lora = LORA.match(name)
    target = f"{lora[1]}.weight" if lora else name
    return any(source.translate(target) is not None for source in SOURCES)


def recognise(names: Iterable[str]) -> list[Source]:
    """The sources that plain names come from: a whole model, or its parts; CLIP may be beside it.

    Raises:
        ModelError: none is known.
    """
    listed = list(names)
    fitting = [source for source in SOURCES if source.fits(listed)]
    first = {part: _first(fitting, part) for part in ("whole", "mllm", "segmenter", "tower")}
    parts = ("whole", "tower") if first["whole"] else ("mllm", "segmenter", "tower")
    found = [source for part in parts if (source := first[part])]
    if not found:
        shown = ", ".join(sorted(listed)[:3]) or "none at all"
        raise ModelError(
            f"no checkpoint that can be converted has these weights (first: {shown}); known are "
            + ", ".join(source.title for source in SOURCES)
        )
    return found


def _first(sources: Iterable[Source], part: str) -> Source | None:
    return next((source for source in sources if source.part == part), None)
