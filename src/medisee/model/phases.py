"""Inference in three phases: an image once, masks without a decoded token, words at the end.

Shape letters: Q questions, T targets, n candidates, N image tokens, d width of the language model,
V vocabulary, C channels, E embedding side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..phrases import speak
from .mllm import KeysValues
from .outputs import EncodedImage, Located, Perceived

if TYPE_CHECKING:
    from .modeling import MediSeeModel


@dataclass
class _Stream:
    """Rows that grow together: their cache, its mask (Q, length), and their last states (Q, d)."""

    past: KeysValues
    mask: Tensor
    last: Tensor


class ThreePhases:
    """`encode_image`, `perceive` and `explain`: what `MediSeeModel` does beside training."""

    @torch.inference_mode()
    def encode_image(
        self: MediSeeModel,
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
        self: MediSeeModel,
        image: EncodedImage,
        questions: list[list[int]],
        group: list[int],
        more: list[int],
        openings: list[int],
        accept: float = 0.5,
        another: float = 0.5,
        max_targets: int = 8,
        settle: Callable[[Tensor], Tensor] | None = None,
        sure: Callable[[Tensor], Tensor] | None = None,
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
            sure: which of these states (T,) tell of themselves that their target is here.
        """
        batch = [ids + group for ids in questions]
        ids, mask = pad_right(batch, self.device)
        first = torch.tensor([len(q) - 1 for q in questions], device=self.device)
        past_mask = mask.new_ones(len(batch), image.prefix.length)
        index = torch.zeros(len(batch), dtype=torch.long, device=self.device)
        states, past = self.text.continue_from(image.prefix.select(index), past_mask, ids, mask)
        rows = torch.arange(len(batch), device=self.device)
        decision = self.text.logits(states[rows, first])[:, openings].float().softmax(dim=-1)
        _, candidates = self.candidate_states(states, ids)
        certain = decision[:, 0] >= accept
        here = (certain if sure is None else certain | sure(candidates)).tolist()
        stream = _Stream(past, torch.cat([past_mask, mask], dim=1), states[rows, mask.sum(1) - 1])
        groups = [[candidates[row]] if here[row] else [] for row in range(len(batch))]
        presence = [[float(decision[row, 0])] if here[row] else [] for row in range(len(batch))]
        _further_groups(self, stream, groups, presence, more, another, max_targets)
        located = _locate_groups(self, image, groups, settle)
        ends = image.prefix.length + first + 1
        return [
            _perceived(self, stream, row, decision[row], found, presence[row], groups[row])
            if found is not None
            else _refused(self, stream, row, decision[row], int(ends[row]), states[row, first[row]])
            for row, found in enumerate(located)
        ]

    @torch.inference_mode()
    def explain(
        self: MediSeeModel,
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


def _perceived(
    model: MediSeeModel,
    stream: _Stream,
    row: int,
    decision: Tensor,
    located: Located,
    presence: list[float],
    groups: list[Tensor],
) -> Perceived:
    past = _select_row(stream.past, row, stream.mask[row].bool())
    logits = model.text.logits(stream.last[row])
    return Perceived(decision, located, presence, past, logits, torch.stack(groups))


def _refused(
    model: MediSeeModel, stream: _Stream, row: int, decision: Tensor, end: int, last: Tensor
) -> Perceived:
    """The words of a refusal follow the question, not the opening that was not taken."""
    keep = stream.mask[row].bool()
    keep[end:] = False
    past = _select_row(stream.past, row, keep)
    return Perceived(decision, None, [], past, model.text.logits(last))


def _further_groups(
    model: MediSeeModel,
    stream: _Stream,
    groups: list[list[Tensor]],
    presence: list[list[float]],
    more: list[int],
    another: float,
    max_targets: int,
) -> None:
    """Opens further groups, all rows in one batched step each, until none wants another."""
    for _ in range(max_targets - 1):
        chance = model.text.logits(stream.last).float().softmax(dim=-1)[:, more[0]]
        answered = torch.tensor([bool(row) for row in groups], device=model.device)
        wants = answered & (chance >= another)
        if not wants.any():
            return
        ids = torch.tensor([more] * len(groups), device=model.device)
        mask = wants.long()[:, None].expand_as(ids)
        states, stream.past = model.text.continue_from(stream.past, stream.mask, ids, mask)
        stream.mask = torch.cat([stream.mask, mask], dim=1)
        # A row that wants no more keeps its last state, and so never wants more again.
        stream.last = torch.where(wants[:, None], states[:, -1], stream.last)
        _, candidates = model.candidate_states(states, ids)
        for row in wants.nonzero()[:, 0].tolist():
            groups[row].append(candidates[row])
            presence[row].append(float(chance[row]))


def _locate_groups(
    model: MediSeeModel,
    image: EncodedImage,
    groups: list[list[Tensor]],
    settle: Callable[[Tensor], Tensor] | None,
) -> list[Located | None]:
    """One mask-decoder batch for the targets of all questions."""
    flat = [states for row in groups for states in row]
    if not flat:
        return [None] * len(groups)
    index = torch.zeros(len(flat), dtype=torch.long, device=model.device)
    candidates = torch.stack(flat)
    everything = model.locate(
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


def pad_right(rows: list[list[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Token ids and mask (Q, L) of rows of unequal length."""
    length = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=device)
    return ids, mask


def _select_row(past: KeysValues, row: int, keep: Tensor) -> KeysValues:
    return tuple(
        (keys[row : row + 1, :, keep], values[row : row + 1, :, keep]) for keys, values in past
    )


def _slice(located: Located, start: int, stop: int) -> Located:
    return Located(**{name: value[start:stop] for name, value in located.items()})
