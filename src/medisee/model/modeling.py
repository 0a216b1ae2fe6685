"""MediSee: a multimodal LLM whose fused candidate states say what, and two decoders say where.

    image ──▶ segmenter.encode ─▶ embedding f ──────────────┬───────────────┐
      │                                                      ▼               ▼
      └▶ MLLM ◀─ question + "It is [SEG] and [BBOX]."    box decoder    mask decoder ─▶ mask
           │                                                 ▲   └─ box ────▲
           └▶ candidate states ─▶ fusion ─┬─ h_det ──────────┘              │
                                          └─ h_seg ─▶ projector ─ text ─────┘

One forward for training and three phases for inference; both call `locate`.

Shape letters: B images, Q questions, T targets, n candidates, L suffix length, P prefix length,
N image tokens, d width of the language model, C channels, E embedding side, S segmenter input.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .. import packing
from ..phrases import speak
from .configuration import MediSeeConfig
from .heads import AdaptiveFusion, BoxDecoder, GroundedBoxDecoder, MaskPromptProjector
from .mllm import KeysValues, Prefix, TextStream, build_mllm
from .points import similarity_points
from .segmenter import Prompts, Segmenter


@dataclass
class Located(ModelOutput):
    """Where the targets are.

    Attributes:
        boxes: (T, 4) cxcywh in 0..1 of the image without its padding; None without a box decoder.
        mask_logits: (T, 4E, 4E) on the segmenter's square.
        quality: (T,) the mask decoder's own estimate of IoU.
        similarity: (T, N) map over the image tokens.
        h_seg, h_det: (T, d).
    """

    boxes: Tensor | None = None
    mask_logits: Tensor | None = None
    quality: Tensor | None = None
    similarity: Tensor | None = None
    h_seg: Tensor | None = None
    h_det: Tensor | None = None


@dataclass
class MediSeeOutput(ModelOutput):
    """What `forward` returns.

    Attributes:
        logits: (A, V) at the A supervised positions, row by row, or (Q, L, V) without labels.
        target_question: (T,) the question that each target belongs to.
        states: (T, n, d) candidate states.
        located: masks and boxes of the targets; None when not wanted, or without any target.
        image_states: (B, N, d).
    """

    logits: Tensor | None = None
    target_question: Tensor | None = None
    states: Tensor | None = None
    located: Located | None = None
    image_states: Tensor | None = None


@dataclass(frozen=True)
class EncodedImage:
    """One image after `encode_image`: all that later questions need of it.

    Attributes:
        embedding: (1, C, E, E).
        prefix: keys, values and image states of the language model.
        content: (1, 2) width and height of the content as a fraction of the square.
    """

    embedding: Tensor
    prefix: Prefix
    content: Tensor


@dataclass
class Perceived:
    """The answer to one question before its words.

    Attributes:
        decision: (k,) probabilities of the k answer openings (index 0: it is here).
        targets: located targets, one group each; None when refused.
        presence: for each target, the probability with which its group was opened.
        keys_values: cache of this row, without padding.
        next_logits: (V,) logits of the first word of the explanation.
        states: (T, n, d) candidate states of the targets; None when refused.
    """

    decision: Tensor
    targets: Located | None
    presence: list[float]
    keys_values: KeysValues
    next_logits: Tensor
    states: Tensor | None = None


@dataclass
class _Stream:
    """Rows that grow together: their cache, its mask (Q, length), and their last states (Q, d)."""

    past: KeysValues
    mask: Tensor
    last: Tensor


class MediSeeModel(PreTrainedModel):
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

    # ---- inference in three phases -----------------------------------------------------------

    @torch.inference_mode()
    def encode_image(
        self,
        prefix_ids: Tensor,
        content: Tensor,
        segmenter_pixel_values: Tensor | None = None,
        pixel_values: Tensor | None = None,
        segmenter_embedding: Tensor | None = None,
    ) -> EncodedImage:
        """Phase 1, once per image: embedding, and the language model's cache of the image.

        Arguments are those of `forward`, for one image.
        """
        embedding = segmenter_embedding
        if embedding is None:
            embedding = self.segmenter.encode(segmenter_pixel_values)
        tokens = self.text.image_tokens(pixel_values, embedding)
        prefix = self.text.prefix(prefix_ids, tokens, self.config.image_token_id)
        return EncodedImage(embedding, prefix, content)

    @torch.inference_mode()
    def perceive(
        self,
        image: EncodedImage,
        questions: list[list[int]],
        group: list[int],
        more: list[int],
        openings: list[int],
        accept: float = 0.5,
        another: float = 0.5,
        max_targets: int = 8,
        settle: Callable[[Tensor], Tensor] | None = None,
    ) -> list[Perceived]:
        """Phase 2: decisions, masks and boxes of all questions, without decoding a token.

        Args:
            questions: token ids of each question, up to where the answer begins.
            group: ids of the answer's opening, with one group of candidates.
            more: ids of what opens a further group; its first id tells "and another".
            openings: first ids of the possible answers; `openings[0]` says that it is here.
            accept: at least this probability of "here", or the question is refused.
            another: at least this probability of "and another" opens a further group.
            max_targets: at most so many groups an answer.
            settle: what the heads read in place of the candidate states (T, n, d).
        """
        batch = [ids + group for ids in questions]
        ids, mask = pad_right(batch, self.device)
        first = torch.tensor([len(q) - 1 for q in questions], device=self.device)
        past_mask = mask.new_ones(len(batch), image.prefix.length)
        index = torch.zeros(len(batch), dtype=torch.long, device=self.device)
        states, past = self.text.continue_from(image.prefix.select(index), past_mask, ids, mask)
        rows = torch.arange(len(batch), device=self.device)
        decision = self.text.logits(states[rows, first])[:, openings].float().softmax(dim=-1)
        here = (decision[:, 0] >= accept).tolist()
        stream = _Stream(past, torch.cat([past_mask, mask], dim=1), states[rows, mask.sum(1) - 1])
        _, candidates = self.candidate_states(states, ids)
        groups = [[candidates[row]] if here[row] else [] for row in range(len(batch))]
        presence = [[float(decision[row, 0])] if here[row] else [] for row in range(len(batch))]
        self._further_groups(stream, groups, presence, more, another, max_targets)
        located = self._locate_groups(image, groups, settle)
        ends = image.prefix.length + first + 1
        return [
            self._perceived(stream, row, decision[row], found, presence[row], groups[row])
            if found is not None
            else self._refused(stream, row, decision[row], int(ends[row]), states[row, first[row]])
            for row, found in enumerate(located)
        ]

    def _perceived(
        self,
        stream: _Stream,
        row: int,
        decision: Tensor,
        located: Located,
        presence: list[float],
        groups: list[Tensor],
    ) -> Perceived:
        past = _select_row(stream.past, row, stream.mask[row].bool())
        logits = self.text.logits(stream.last[row])
        return Perceived(decision, located, presence, past, logits, torch.stack(groups))

    def _refused(
        self, stream: _Stream, row: int, decision: Tensor, end: int, last: Tensor
    ) -> Perceived:
        """The words of a refusal follow the question, not the opening that was not taken."""
        keep = stream.mask[row].bool()
        keep[end:] = False
        past = _select_row(stream.past, row, keep)
        return Perceived(decision, None, [], past, self.text.logits(last))

    def _further_groups(
        self,
        stream: _Stream,
        groups: list[list[Tensor]],
        presence: list[list[float]],
        more: list[int],
        another: float,
        max_targets: int,
    ) -> None:
        """Opens further groups, all rows in one batched step each, until none wants another."""
        for _ in range(max_targets - 1):
            chance = self.text.logits(stream.last).float().softmax(dim=-1)[:, more[0]]
            answered = torch.tensor([bool(row) for row in groups], device=self.device)
            wants = answered & (chance >= another)
            if not wants.any():
                return
            ids = torch.tensor([more] * len(groups), device=self.device)
            mask = wants.long()[:, None].expand_as(ids)
            states, stream.past = self.text.continue_from(stream.past, stream.mask, ids, mask)
            stream.mask = torch.cat([stream.mask, mask], dim=1)
            # A row that wants no more keeps its last state, and so never wants more again.
            stream.last = torch.where(wants[:, None], states[:, -1], stream.last)
            _, candidates = self.candidate_states(states, ids)
            for row in wants.nonzero()[:, 0].tolist():
                groups[row].append(candidates[row])
                presence[row].append(float(chance[row]))

    def _locate_groups(
        self,
        image: EncodedImage,
        groups: list[list[Tensor]],
        settle: Callable[[Tensor], Tensor] | None,
    ) -> list[Located | None]:
        """One mask-decoder batch for the targets of all questions."""
        flat = [states for row in groups for states in row]
        if not flat:
            return [None] * len(groups)
        index = torch.zeros(len(flat), dtype=torch.long, device=self.device)
        candidates = torch.stack(flat)
        everything = self.locate(
            candidates if settle is None else settle(candidates),
            image.embedding[index],
            image.prefix.image_states[index],
            image.content[index],
        )
        results: list[Located | None] = []
        start = 0
        for row in groups:
            stop = start + len(row)
            results.append(_slice(everything, start, stop) if row else None)
            start = stop
        return results

    @torch.inference_mode()
    def explain(
        self,
        perceived: Perceived,
        opening: int | None,
        stop: int,
        max_tokens: int = 96,
        allowed: Callable[[list[int]], list[int]] | None = None,
    ) -> Iterator[int]:
        """Phase 3: the explanation, token by token, greedily, from the cache of phase 2.

        Args:
            opening: a first token that is settled already (of a refusal); it is yielded too.
            stop: id of the end token; it is not yielded.
            allowed: ids that may follow those already said; none ends the explanation.
        """
        past, logits = perceived.keys_values, perceived.next_logits

        def best(unread: list[int], choices: list[int] | None) -> int:
            nonlocal past, logits
            if unread:
                ids = torch.tensor([unread], device=self.device)
                past_mask = ids.new_ones(1, past[0][0].shape[2])
                states, past = self.text.continue_from(past, past_mask, ids, torch.ones_like(ids))
                logits = self.text.logits(states[0, -1])
            return (
                int(logits.argmax()) if choices is None else choices[int(logits[choices].argmax())]
            )

        return speak(best, opening, stop, max_tokens, allowed)


def _check_fit(missing: Collection[str], unexpected: Collection[str]) -> None:
    if wrong := [*sorted(missing), *sorted(unexpected)]:
        raise ValueError(f"the weights do not fit the configuration, first at {wrong[0]}")


def similarity_map(image_states: Tensor, h_seg: Tensor) -> Tensor:
    """s = H_img h_seg / sqrt(d): (T, N, d), (T, d) -> (T, N) (section 3.4)."""
    scores = torch.einsum("tnd,td->tn", image_states.float(), h_seg.float())
    return scores / h_seg.shape[-1] ** 0.5


def pad_right(rows: list[list[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Token ids and mask (Q, L) of rows of unequal length."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
    return ids, mask


def _supervised(states: Tensor, labels: Tensor | None) -> Tensor:
    """The states that predict a supervised token: logits of the others are never looked at."""
    if labels is None:
        return states
    return states[:, :-1][labels[:, 1:] != -100]


def _select_row(past: KeysValues, row: int, keep: Tensor) -> KeysValues:
    return tuple(
        (keys[row : row + 1, :, keep], values[row : row + 1, :, keep]) for keys, values in past
    )


def _slice(located: Located, start: int, stop: int) -> Located:
    return Located(**{name: value[start:stop] for name, value in located.items()})
