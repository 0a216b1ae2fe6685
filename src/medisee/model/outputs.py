"""What the model gives out, in training and in inference.

Shape letters: B images, Q questions, T targets, A supervised positions, n candidates, L length,
N image tokens, V vocabulary, d width of the language model, C channels, E embedding side.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from .mllm import KeysValues, Prefix


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
