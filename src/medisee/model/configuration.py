"""Configuration of MediSee: architecture only. What a run does belongs into its recipe."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig, SamConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

BOX_TOKEN, SEG_TOKEN = "[BBOX]", "[SEG]"


def candidate_tokens(count: int) -> list[str]:
    """The `count` candidate tokens, in the order in which the routers take them (section 2)."""
    if count == 1:
        return [SEG_TOKEN]
    return [BOX_TOKEN, SEG_TOKEN] + [f"[CAND{k}]" for k in range(3, count + 1)]


class TinyViTConfig(PreTrainedConfig):
    """LiteMedSAM's image encoder; the defaults are its published sizes."""

    model_type = "medisee_tinyvit"

    def __init__(
        self,
        embed_dims: list[int] | None = None,
        depths: list[int] | None = None,
        num_heads: list[int] | None = None,
        window_sizes: list[int] | None = None,
        expansion: float = 4.0,
        mlp_ratio: float = 4.0,
        output_channels: int = 256,
        **kwargs: Any,
    ) -> None:
        self.embed_dims = embed_dims or [64, 128, 160, 320]
        self.depths = depths or [2, 2, 6, 2]
        self.num_heads = num_heads or [2, 4, 5, 10]
        self.window_sizes = window_sizes or [7, 7, 14, 7]
        self.expansion = expansion
        self.mlp_ratio = mlp_ratio
        self.output_channels = output_channels
        super().__init__(**kwargs)


class SharedEncoderConfig(PreTrainedConfig):
    """Nano's MLLM: a text model whose image tokens are pooled from the segmenter's embedding.

    Args:
        text_config: any transformers decoder (nano: Llama sizes of SmolLM2).
        grid: image tokens per side; the embedding is pooled to grid x grid.
        embedding_channels: channels of the segmenter's embedding.
        image_token_id: id of the image placeholder in the text model's vocabulary.
    """

    model_type = "medisee_shared_encoder"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    def __init__(
        self,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        grid: int = 8,
        embedding_channels: int = 256,
        image_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        self.text_config = _sub_config(text_config, default="llama")
        self.grid = grid
        self.embedding_channels = embedding_channels
        self.image_token_id = image_token_id
        super().__init__(**kwargs)

    @property
    def image_seq_length(self) -> int:
        return self.grid**2


class SegmenterConfig(PreTrainedConfig):
    """A SAM-family segmenter: its image encoder, its prompt encoder and mask decoder, its input.

    Args:
        encoder: `"sam"` (ViT of transformers' SamModel), `"sam-med2d"` (the same with adapters) or
            `"tinyvit"` (LiteMedSAM).
        sam_config: sizes of the prompt encoder, the mask decoder and, for `"sam"`, the ViT.
        tinyvit_config: sizes of the TinyViT.
        normalisation: `"minmax"` (MedSAM family: each image to 0..1) or `"imagenet"` (SAM).
        pad: keep the aspect and pad right and below (True), or squash to the square (False).
    """

    model_type = "medisee_segmenter"
    sub_configs: ClassVar[dict[str, Any]] = {
        "sam_config": SamConfig,
        "tinyvit_config": TinyViTConfig,
    }

    def __init__(
        self,
        encoder: str = "sam",
        sam_config: SamConfig | dict[str, Any] | None = None,
        tinyvit_config: TinyViTConfig | dict[str, Any] | None = None,
        normalisation: str = "minmax",
        pad: bool = True,
        **kwargs: Any,
    ) -> None:
        self.encoder = encoder
        # Any: transformers types its own sub-configurations as optional.
        self.sam_config: Any = (
            SamConfig(**sam_config) if isinstance(sam_config, dict) else sam_config or SamConfig()
        )
        # transformers' default of 1e-6 is not what SAM's two-way transformer uses.
        self.sam_config.mask_decoder_config.layer_norm_eps = 1e-5
        if isinstance(tinyvit_config, dict):
            tinyvit_config = TinyViTConfig(**tinyvit_config)
        self.tinyvit_config = tinyvit_config or TinyViTConfig()
        self.normalisation = normalisation
        self.pad = pad
        super().__init__(**kwargs)

    @property
    def image_size(self) -> int:
        return self.sam_config.prompt_encoder_config.image_size

    @property
    def embedding_size(self) -> int:
        return self.image_size // self.sam_config.prompt_encoder_config.patch_size

    @property
    def prompt_channels(self) -> int:
        return self.sam_config.prompt_encoder_config.hidden_size


class MediSeeConfig(PreTrainedConfig):
    """Everything that fixes MediSee's architecture.

    Args:
        mllm: configuration of the multimodal LLM (`llava`, `medisee_shared_encoder`).
        segmenter: configuration of the SAM-family segmenter.
        num_candidates: n, how many candidate tokens the vocabulary gains (table 3).
        candidate_token_ids: their ids, in router order; set when the tokens are added.
        fusion: `"soft"` (the paper's), `"hard"` (each decoder its own token) or `"single"` (n = 1).
        router_hidden: hidden width of the routers (1024 at full size; d / 4 else).
        box_decoder: `"mlp"` (the paper's), `"grounded"` (looks at the embedding) or `"none"`.
        box_hidden: hidden width of the box decoder.
        mask_prompts: what prompts the mask decoder: `"text"`, `"text+box"`, `"text+points"` (READ)
            or `"text+box+points"`.
        detach_box: keep the mask loss from reaching the box decoder.
        compat: switches that restore what a converted checkpoint was trained with.
    """

    model_type = "medisee"
    sub_configs: ClassVar[dict[str, Any]] = {"mllm": AutoConfig, "segmenter": SegmenterConfig}

    def __init__(
        self,
        mllm: PreTrainedConfig | dict[str, Any] | None = None,
        segmenter: SegmenterConfig | dict[str, Any] | None = None,
        num_candidates: int = 2,
        candidate_token_ids: list[int] | None = None,
        fusion: str = "soft",
        router_hidden: int | None = None,
        box_decoder: str = "mlp",
        box_hidden: int = 512,
        grounding_layers: int = 3,
        grounding_width: int = 256,
        grounding_grid: int = 16,
        mask_prompts: str = "text+box",
        detach_box: bool = False,
        compat: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.mllm = _sub_config(mllm, default="llava")
        if isinstance(segmenter, dict):
            segmenter = SegmenterConfig(**segmenter)
        self.segmenter = segmenter or SegmenterConfig()
        self.num_candidates = num_candidates
        self.candidate_token_ids = candidate_token_ids or []
        self.fusion = "single" if num_candidates == 1 else fusion
        self.router_hidden = router_hidden or max(self.mllm.text_config.hidden_size // 4, 8)
        self.box_decoder = box_decoder
        self.box_hidden = box_hidden
        self.grounding_layers = grounding_layers
        self.grounding_width = grounding_width
        self.grounding_grid = grounding_grid
        self.mask_prompts = mask_prompts
        self.detach_box = detach_box
        self.compat = compat or {}
        super().__init__(**kwargs)
        self._check()

    @property
    def hidden_size(self) -> int:
        """d, the width of the language model."""
        return self.mllm.text_config.hidden_size

    @property
    def image_token_id(self) -> int:
        return self.mllm.image_token_id

    @property
    def image_seq_length(self) -> int:
        return self.mllm.image_seq_length

    def _check(self) -> None:
        choices = {
            "fusion": ("soft", "hard", "single"),
            "box_decoder": ("mlp", "grounded", "none"),
            "mask_prompts": ("text", "text+box", "text+points", "text+box+points"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}"
                )
        if self.num_candidates < 1:
            raise ValueError("num_candidates must be at least 1")
        if self.box_decoder == "none" and "box" in self.mask_prompts:
            raise ValueError("without a box decoder, mask_prompts must be 'text' or 'text+points'")


def _sub_config(config: PreTrainedConfig | dict[str, Any] | None, default: str) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    fields = dict(config or {})
    return CONFIG_MAPPING[fields.pop("model_type", default)](**fields)


AutoConfig.register(TinyViTConfig.model_type, TinyViTConfig)
AutoConfig.register(SharedEncoderConfig.model_type, SharedEncoderConfig)
AutoConfig.register(SegmenterConfig.model_type, SegmenterConfig)
AutoConfig.register(MediSeeConfig.model_type, MediSeeConfig)
