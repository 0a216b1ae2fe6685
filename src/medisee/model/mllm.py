"""The multimodal LLM behind MediSee: transformers' own, or nano's shared-encoder form.

Whatever it is, the rest needs four things of it, and `TextStream` holds them: embeddings of token
ids, image tokens, a decoder that takes and fills a cache, and the head that gives logits.

Shape letters: B images, Q questions, P prefix length, L suffix length, N image tokens, d width.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)

from .configuration import SharedEncoderConfig


class ImageProjector(nn.Module):
    """Pools the segmenter's embedding to grid x grid tokens: (B, C, E, E) -> (B, N, d)."""

    def __init__(self, config: SharedEncoderConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.grid = config.grid
        self.norm = nn.LayerNorm(config.embedding_channels)
        self.linear_1 = nn.Linear(config.embedding_channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, embedding: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(embedding, self.grid).flatten(2).transpose(1, 2)
        return self.linear_2(F.gelu(self.linear_1(self.norm(pooled))))


class SharedEncoderMLLM(PreTrainedModel):
    """A text model that sees through the segmenter's image encoder (nano)."""

    config_class = SharedEncoderConfig
    base_model_prefix = "language_model"
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "lm_head.weight": "language_model.embed_tokens.weight"
    }

    def __init__(self, config: SharedEncoderConfig) -> None:
        super().__init__(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.projector = ImageProjector(config)
        self.lm_head = nn.Linear(
            config.text_config.hidden_size, config.text_config.vocab_size, bias=False
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings


def build_mllm(config: PreTrainedConfig) -> PreTrainedModel:
    """Any image-text-to-text model that transformers has, or nano's."""
    if isinstance(config, SharedEncoderConfig):
        return SharedEncoderMLLM(config)
    return AutoModelForImageTextToText.from_config(config)


@dataclass(frozen=True)
class Prefix:
    """The image and what precedes the question, run through the language model once.

    Attributes:
        keys_values: per layer, keys and values (B, heads, P, head size).
        image_states: (B, N, d) last-layer states of the image tokens.
    """

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    image_states: Tensor

    @property
    def length(self) -> int:
        return self.keys_values[0][0].shape[2]

    def select(self, index: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Keys and values of the images in `index` (Q,)."""
        return tuple((keys[index], values[index]) for keys, values in self.keys_values)


KeysValues = tuple[tuple[Tensor, Tensor], ...]


class TextStream:
    """Runs a multimodal LLM's text side over embeddings, always with an explicit cache."""

    def __init__(self, mllm: PreTrainedModel) -> None:
        self.mllm = mllm
        self.decoder = mllm.get_decoder()
        # transformers renames this argument within the range of versions that we allow.
        parameters = inspect.signature(type(self.decoder).forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"

    def image_tokens(self, pixel_values: Tensor | None, embedding: Tensor) -> Tensor:
        """(B, N, d), from the segmenter's embedding (nano) or from the MLLM's own pixels."""
        if isinstance(self.mllm, SharedEncoderMLLM):
            return self.mllm.projector(embedding.to(self.mllm.projector.linear_1.weight.dtype))
        if pixel_values is None:
            raise ValueError("this model has a vision tower of its own and needs pixel_values")
        with torch.no_grad():  # tower and its projector are frozen, in every stage of the paper
            features = self.mllm.get_image_features(pixel_values=pixel_values, return_dict=True)
        return torch.stack(list(features.pooler_output))

    def prefix(self, ids: Tensor, image_tokens: Tensor, image_token_id: int) -> Prefix:
        """Runs (B, P) prefix ids, with image tokens put where the placeholders stand."""
        places = ids == image_token_id
        batch, count, width = image_tokens.shape
        if (places.sum(dim=1) != count).any():
            raise ValueError(
                f"the prompt holds {places.sum(dim=1).tolist()} image placeholders per image, "
                f"but the image gives {count} tokens; use the processor made for this model"
            )
        embedded = self.mllm.get_input_embeddings()(ids.clamp(min=0))
        embedded = embedded.masked_scatter(places[..., None], image_tokens.to(embedded.dtype))
        states, keys_values = self._run(embedded, None, torch.ones_like(ids))
        return Prefix(keys_values, states[places].view(batch, count, width))

    def continue_from(
        self, past: KeysValues, past_mask: Tensor, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """Runs (Q, L) more ids after `past`; rows are padded on the right.

        Args:
            past: keys and values of length P.
            past_mask: (Q, P), 0 where `past` holds padding.
            ids, mask: (Q, L).

        Returns:
            Last-layer states after the final norm (Q, L, d), keys and values of length P + L.
        """
        embedded = self.mllm.get_input_embeddings()(ids)
        return self._run(embedded, past, torch.cat([past_mask, mask], dim=1))

    def logits(self, states: Tensor) -> Tensor:
        return self.mllm.get_output_embeddings()(states)

    def _run(
        self, embedded: Tensor, past: KeysValues | None, mask: Tensor
    ) -> tuple[Tensor, KeysValues]:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past or ()):
            cache.update(keys, values, layer)
        # Positions count real tokens only, so that padding in the past leaves no gap.
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -embedded.shape[1] :]
        output = self.decoder(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: cache},
        )
        keys_values = tuple((layer.keys, layer.values) for layer in cache.layers)
        return output.last_hidden_state, keys_values
