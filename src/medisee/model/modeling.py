"""MediSee: a multimodal LLM whose fused candidate states say what, and two decoders say where.

    image ──▶ segmenter.encode ─▶ embedding f ──────────────┬───────────────┐
      │                                                      ▼               ▼
      └▶ MLLM ◀─ question + "It is [SEG] and [BBOX]."    box decoder    mask decoder ─▶ mask
           │                                                 ▲   └─ box ────▲
           └▶ candidate states ─▶ fusion ─┬─ h_det ──────────┘              │
                                          └─ h_seg ─▶ projector ─ text ─────┘

One forward for training and three phases for inference (`phases`); both call `locate`.

Shape letters: B images, Q questions, T targets, n candidates, L suffix length, P prefix length,
N image tokens, d width of the language model, C channels, E embedding side, S segmenter input.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .. import packing
from .configuration import MediSeeConfig
from .heads import AdaptiveFusion, BoxDecoder, GroundedBoxDecoder, MaskPromptProjector
from .mllm import TextStream, build_mllm
from .outputs import Located, MediSeeOutput
from .phases import ThreePhases
from .points import similarity_points
from .segmenter import Prompts, Segmenter


class MediSeeModel(ThreePhases, PreTrainedModel):
    """The whole model (section 3 of the paper; figure 2)."""

    config_class = MediSeeConfig
    base_model_prefix = "medisee"
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer", "MistralDecoderLayer"]

    def __init__(self, config: MediSeeConfig) -> None:
        super().__init__(config)
        self.mllm = build_mllm(config.mllm)
        self.segmenter = Segmenter(config.segmenter)
        self.fusion = AdaptiveFusion(config)
        if config.box_decoder != "none":
            kind = GroundedBoxDecoder if config.box_decoder == "grounded" else BoxDecoder
            self.box_decoder = kind(config)
        self.projector = MaskPromptProjector(config.hidden_size, config.segmenter.prompt_channels)
        self.post_init()
        if config.box_decoder != "none":
            self.box_decoder.mlp.reset()

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> MediSeeModel:
        """Like every transformers model; reads packed weights too (see `packing`).

        Raises:
            ValueError: if the weights do not fit the configuration, whole and in every shape.
        """
        if (Path(folder) / packing.FILE).is_file():
            config = kwargs.pop("config", None) or MediSeeConfig.from_pretrained(folder)
            model = cls(config)
            arrays = packing.load_packed(Path(folder))
            state = {name: torch.from_numpy(array) for name, array in arrays.items()}
            missing, unexpected = model.load_state_dict(state, False)
            _check_fit(set(missing) - set(model.all_tied_weights_keys), unexpected)
            model.tie_weights()
            return model.eval()
        # transformers fills what is missing with random numbers, and only warns.
        model, info = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        _check_fit(info["missing_keys"], info["unexpected_keys"])
        return model

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Like every transformers model; under our own names, not those of its older versions."""
        super().save_pretrained(folder, **{"save_original_format": False, **kwargs})

    def save_packed(self, folder: Path) -> None:
        """Writes configuration and small weights (see `packing`), which `from_pretrained` reads."""
        self.config.save_pretrained(folder)
        tied = set(self.all_tied_weights_keys)
        state = {n: v.cpu().numpy() for n, v in self.state_dict().items() if n not in tied}
        packing.save_packed(state, folder)

    @property
    def text(self) -> TextStream:
        return TextStream(self.mllm)

    # ---- training ----------------------------------------------------------------------------

    def forward(
        self,
        prefix_ids: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor,
        content: Tensor,
        pixel_values: Tensor | None = None,
        segmenter_pixel_values: Tensor | None = None,
        segmenter_embedding: Tensor | None = None,
        labels: Tensor | None = None,
        prompt_boxes: Tensor | None = None,
        locate: bool = True,
        decode: bool = True,
    ) -> MediSeeOutput:
        """All questions of all images in one pass; an image's prefix is shared by its questions.

        Args:
            prefix_ids: (B, P) what precedes the questions, with N image placeholders a row.
            input_ids, attention_mask: (Q, L) questions with their answers, padded on the right.
            image_index: (Q,) the image that each question is about.
            content: (B, 2) width and height of the image as a fraction of the S x S square.
            pixel_values: the MLLM's own image input, where it has a vision tower.
            segmenter_pixel_values: (B, 3, S, S); or
            segmenter_embedding: (B, C, E, E), cached.
            labels: (Q, L), -100 where unsupervised.
            prompt_boxes: (T, 4) cxcywh; prompts the mask decoder in place of the predicted boxes.
            locate: run the box decoder; and with it, if
            decode: the mask decoder.
        """
        if segmenter_embedding is None:
            with torch.no_grad():  # frozen, in every stage of the paper
                segmenter_embedding = self.segmenter.encode(segmenter_pixel_values)
        text = self.text
        tokens = text.image_tokens(pixel_values, segmenter_embedding)
        prefix = text.prefix(prefix_ids, tokens, self.config.image_token_id)
        past_mask = attention_mask.new_ones(len(input_ids), prefix.length)
        states, _ = text.continue_from(
            prefix.select(image_index), past_mask, input_ids, attention_mask
        )
        question, candidates = self.candidate_states(states, input_ids)
        located = None
        if locate and len(question):
            image = image_index[question]
            located = self.locate(
                candidates,
                segmenter_embedding[image],
                prefix.image_states[image],
                content[image],
                prompt_boxes=prompt_boxes,
                decode=decode,
            )
        return MediSeeOutput(
            logits=text.logits(_supervised(states, labels)),
            target_question=question,
            states=candidates,
            located=located,
            image_states=prefix.image_states,
        )

    def candidate_states(self, states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The states that *predict* the candidate tokens (the position before each).

        Args:
            states: (Q, L, d) last-layer states.
            ids: (Q, L).

        Returns:
            Question of each target (T,) and its states (T, n, d) in the config's order.

        Raises:
            ValueError: if some answer holds an incomplete group of candidates.
        """
        questions, found = [], []
        for token in self.config.candidate_token_ids:
            rows, places = (ids == token).nonzero(as_tuple=True)
            questions.append(rows)
            found.append(states[rows, places - 1])
        if any(not torch.equal(questions[0], other) for other in questions[1:]):
            raise ValueError("an answer holds an incomplete group of candidate tokens")
        return questions[0], torch.stack(found, dim=1)

    def locate(
        self,
        candidates: Tensor,
        embedding: Tensor,
        image_states: Tensor,
        content: Tensor,
        prompt_boxes: Tensor | None = None,
        decode: bool = True,
    ) -> Located:
        """From candidate states to boxes and masks: all that the paper adds, in one place.

        Args:
            candidates: (T, n, d).
            embedding: (T, C, E, E) of each target's image.
            image_states: (T, N, d).
            content: (T, 2), see `forward`.
            prompt_boxes: (T, 4) cxcywh in place of the predicted ones, for the mask decoder only.
        """
        # The language model may be in a lower precision than what looks at its states.
        h_seg, h_det = self.fusion(candidates.to(self.projector.layers[0].weight.dtype))
        similarity = similarity_map(image_states, h_seg)
        boxes = None
        if self.config.box_decoder != "none":
            boxes = self.box_decoder(h_det, embedding, content)
        located = Located(boxes=boxes, similarity=similarity, h_seg=h_seg, h_det=h_det)
        if decode:
            prompts = self._prompts(
                h_seg, boxes if prompt_boxes is None else prompt_boxes, similarity, content
            )
            located.mask_logits, located.quality = self.segmenter.decode(embedding, prompts)
        return located

    def _prompts(
        self, h_seg: Tensor, boxes: Tensor | None, similarity: Tensor, content: Tensor
    ) -> Prompts:
        """Sparse embeddings' ingredients: corners of the box, text, READ's points."""
        kinds = self.config.mask_prompts
        corners, points, labels = None, None, None
        if "box" in kinds and boxes is not None:
            corners = self._box_prompt(boxes.detach() if self.config.detach_box else boxes, content)
        if "points" in kinds:
            points, labels = similarity_points(similarity.detach(), content)
            points = points * self.config.segmenter.image_size
        return Prompts(corners, self.projector(h_seg), points, labels)

    def _box_prompt(self, boxes: Tensor, content: Tensor) -> Tensor:
        """cxcywh of the un-padded image -> xyxy in pixels of the padded square."""
        size = self.config.segmenter.image_size
        if self.config.compat.get("box_prompt") == "authors":
            # They scale both axes by S even where the image is padded, and round to bf16.
            pixels = (boxes * size).to(torch.bfloat16)
            centre, half = pixels[:, :2], pixels[:, 2:] / 2
            corners = torch.cat([centre - half, centre + half], dim=1)
            return (corners + 0.5).float() - 0.5
        scale = torch.cat([content, content], dim=1) * size
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        return torch.cat([centre - half, centre + half], dim=1) * scale


def _check_fit(missing: Collection[str], unexpected: Collection[str]) -> None:
    if wrong := [*sorted(missing), *sorted(unexpected)]:
        raise ValueError(f"the weights do not fit the configuration, first at {wrong[0]}")


def similarity_map(image_states: Tensor, h_seg: Tensor) -> Tensor:
    """s = H_img h_seg / sqrt(d): (T, N, d), (T, d) -> (T, N) (section 3.4)."""
    scores = torch.einsum("tnd,td->tn", image_states.float(), h_seg.float())
    return scores / h_seg.shape[-1] ** 0.5


def _supervised(states: Tensor, labels: Tensor | None) -> Tensor:
    """The states that predict a supervised token: logits of the others are never looked at."""
    if labels is None:
        return states
    return states[:, :-1][labels[:, 1:] != -100]
