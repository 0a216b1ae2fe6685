"""Nano without torch: the three phases on ONNX Runtime and numpy.

`OnnxRuntime.load(folder, processor)` is the one door. The graphs come from `compile.py`; they
read their weights from the folder's `packed.safetensors`. Everything here equals what
`MediSeeModel.perceive` and its kin do; tests hold the two together.

Shape letters: Q questions, T targets, L new tokens, P tokens before, N image tokens, d width,
h size of an attention head, C channels, E embedding side.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..categories import Categories, speaking_categories
from ..errors import ModelError
from ..hub import GRAPHS
from ..packing import FILE, SCALE, dequantise
from ..phrases import speak
from ..processing import TOKENS_PER_TARGET, MediSeeProcessor, RawAnswer, SegmenterInput
from .graphs import Graph, OpenVinoGraph, weights_digest

__all__ = ["OnnxRuntime", "weights_digest"]

MAX_TARGETS = 8
UNSEEN = np.float32(-1e9)
EMBEDDINGS = "mllm.language_model.embed_tokens.weight"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class EncodedImage:
    """One image after `encode`.

    Attributes:
        embedding: (1, C, E, E).
        past: (layers, 2, 1, groups, P, h) keys and values of what precedes a question.
        image_states: (1, N, d).
        content: (1, 2) width and height of the content as a fraction of the square.
    """

    embedding: Floats
    past: Floats
    image_states: Floats
    content: Floats


@dataclass
class _Stream:
    """Rows that grow together: their cache, which of it counts (Q, P), logits of the last token."""

    past: Floats
    seen: NDArray[np.bool_]
    logits: Floats


@dataclass(frozen=True)
class _Handle:
    """What `explain` needs: the cache of one row without padding, logits of the next token."""

    past: Floats
    logits: Floats


class OnnxRuntime:
    """Runs compiled graphs; the same three phases as `TorchRuntime`."""

    exact_batches = False
    """8-bit activations round otherwise in other company: boxes move by a pixel or two."""

    def __init__(
        self,
        folder: Path,
        processor: MediSeeProcessor,
        categories: Categories | None,
        openvino: bool,
    ) -> None:
        self.processor = processor
        self.categories = categories
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = config["mllm"]["text_config"]
        self._candidates: list[int] = config["candidate_token_ids"]
        self._image_token: int = config["mllm"]["image_token_id"]
        self._cache = (text["num_hidden_layers"], 2, 1, text["num_key_value_heads"], 0)
        self._head: int = text["head_dim"]
        self._theta = float(text["rope_parameters"]["rope_theta"])
        self._embeddings = _Embeddings.load(folder)
        encoder, language, locate = GRAPHS
        self._encoder = (OpenVinoGraph if openvino else Graph)(folder, encoder)
        self._language, self._locate = Graph(folder, language), Graph(folder, locate)

    @classmethod
    def load(cls, folder: Path, processor: MediSeeProcessor, openvino: bool = False) -> OnnxRuntime:
        """Loads a compiled model folder.

        Args:
            openvino: the image encoder, most of a fresh image's cost, runs on OpenVINO.

        Raises:
            ModelError: graphs that are missing, damaged, made for other weights, or too new for
                the onnxruntime that is installed.
            MissingExtraError: OpenVINO is asked for and not installed.
        """
        categories = speaking_categories(folder, processor.phrases)
        return cls(folder, processor, categories, openvino)

    # ---- phase 1 -----------------------------------------------------------------------------

    def encode(self, image: SegmenterInput, mllm_pixels: object | None = None) -> EncodedImage:
        """Embedding, and the language model's cache of the image; once per image."""
        embedding, tokens = self._encoder(pixels=image.pixels[None]).values()
        ids = np.array([self.processor.prefix_ids])
        places = ids == self._image_token
        embedded = self._embeddings(np.where(places, 0, ids))
        embedded[places] = tokens[0]
        past = np.zeros((*self._cache, self._head), np.float32)
        states, fresh, _ = self._run(embedded, past, np.ones_like(ids, bool), np.zeros(0, int))
        content = np.array([image.content_fraction], np.float32)
        return EncodedImage(embedding, fresh, states[places][None], content)

    # ---- phase 2 -----------------------------------------------------------------------------

    def perceive(
        self, image: EncodedImage, questions: list[list[int]], accept: float, another: float = 0.5
    ) -> list[RawAnswer]:
        """Every question's decision, boxes and mask logits, in one batch."""
        processor = self.processor
        ids, mask = _pad_right([ids + processor.group for ids in questions])
        count, length = ids.shape
        rows, first = np.arange(count), np.array([len(q) - 1 for q in questions])
        last = mask.sum(axis=1) - 1
        wanted = np.concatenate([rows * length + first, rows * length + last])
        past = np.repeat(image.past, count, axis=2)
        seen = np.concatenate([np.ones((count, past.shape[4]), bool), mask], axis=1)
        states, past, logits = self._run(self._embeddings(ids), past, seen, wanted)
        decision = _softmax(logits[:count][:, processor.openings])
        candidates = self._of(states, ids)
        here = decision[:, 0] >= accept
        if self.categories is not None:
            here |= self.categories.sure(np.stack(candidates))
        groups = [[found] if here[row] else [] for row, found in enumerate(candidates)]
        presence = [[float(decision[row, 0])] if here[row] else [] for row in rows]
        stream = _Stream(past, seen, logits[count:])
        self._further_groups(stream, groups, presence, another)
        located = self._locate_groups(image, groups)
        ends = (image.past.shape[4] + first + 1).tolist()
        return [
            self._raw(decision[row], presence[row], groups[row], found, _handle(stream, row))
            if (found := located[row])
            else RawAnswer(decision[row], [], _refused(stream, row, ends[row], logits[row]))
            for row in range(count)
        ]

    def _further_groups(
        self,
        stream: _Stream,
        groups: list[list[Floats]],
        presence: list[list[float]],
        another: float,
    ) -> None:
        """Opens further groups, all rows in one batched step each, until none wants another."""
        more = self.processor.more
        answered = np.array([bool(row) for row in groups])
        for _ in range(MAX_TARGETS - 1):
            chance = _softmax(stream.logits)[:, more[0]]
            wants = answered & (chance >= another)
            if not wants.any():
                return
            ids = np.tile(more, (len(groups), 1))
            fresh = np.repeat(wants[:, None], len(more), axis=1)
            stream.seen = np.concatenate([stream.seen, fresh], axis=1)
            ends = np.arange(1, len(groups) + 1) * len(more) - 1
            states, stream.past, logits = self._run(
                self._embeddings(ids), stream.past, stream.seen, ends
            )
            # A row that wants no more keeps its last logits, and so never wants more again.
            stream.logits = np.where(wants[:, None], logits, stream.logits)
            for row, found in enumerate(self._of(states, ids)):
                if wants[row]:
                    groups[row].append(found)
                    presence[row].append(float(chance[row]))

    def _of(self, states: Floats, ids: NDArray[np.int64]) -> list[Floats]:
        """(n, d) of each row: the states that predict the candidate tokens."""
        places = [np.argmax(ids == token, axis=1) - 1 for token in self._candidates]
        return list(np.stack([states[np.arange(len(ids)), place] for place in places], axis=1))

    def _locate_groups(
        self, image: EncodedImage, groups: list[list[Floats]]
    ) -> list[dict[str, Floats] | None]:
        """One mask-decoder batch for the targets of all questions."""
        flat = [states for row in groups for states in row]
        if not flat:
            return [None] * len(groups)
        candidates = np.stack(flat)
        given = {
            "candidates": self.categories.settle(candidates) if self.categories else candidates,
            "embedding": image.embedding,
            "image_states": image.image_states,
            "content": image.content,
        }
        values = self._locate(**given)
        results: list[dict[str, Floats] | None] = []
        start = 0
        for row in groups:
            stop = start + len(row)
            part = {name: value[start:stop] for name, value in values.items()}
            results.append(part if row else None)
            start = stop
        return results

    def _raw(
        self,
        decision: Floats,
        presence: list[float],
        states: list[Floats],
        located: dict[str, Floats],
        handle: _Handle,
    ) -> RawAnswer:
        labels = [] if self.categories is None else self.categories.nearest(np.stack(states))
        return RawAnswer(decision, presence=presence, handle=handle, labels=labels, **located)

    # ---- phase 3 -----------------------------------------------------------------------------

    def explain(self, raw: RawAnswer, opening: int | None) -> Iterator[int]:
        """Token ids of the explanation; of a phrasebook's sentences where there is one."""
        phrases = self.processor.phrases
        allowed = None if phrases is None else partial(phrases.allowed, raw.labels)
        past, logits = raw.handle.past, raw.handle.logits

        def best(unread: list[int], choices: list[int] | None) -> int:
            nonlocal past, logits
            if unread:
                seen = np.ones((1, past.shape[4] + len(unread)), bool)
                last = np.array([len(unread) - 1])
                _, past, rows = self._run(self._embeddings(np.array([unread])), past, seen, last)
                logits = rows[0]
            return (
                int(logits.argmax()) if choices is None else choices[int(logits[choices].argmax())]
            )

        most = TOKENS_PER_TARGET * max(len(raw.presence), 1)
        return speak(best, opening, self.processor.end_id, most, allowed)

    # ---- the language model ------------------------------------------------------------------

    def _run(
        self, embedded: Floats, past: Floats, seen: NDArray[np.bool_], wanted: NDArray[np.int64]
    ) -> tuple[Floats, Floats, Floats]:
        """States (Q, L, d), keys and values with the fresh ones, logits (W, V).

        Args:
            seen: (Q, P + L), False where a token is padding.
        """
        length = embedded.shape[1]
        before = seen.shape[1] - length
        causal = np.tri(length, length, dtype=bool)
        visible = np.concatenate([np.ones((length, before), bool), causal], axis=1)
        bias = np.where(visible & seen[:, None], np.float32(0), UNSEEN)[:, None]
        positions = (seen.cumsum(axis=1) - 1).clip(min=0)[:, -length:]
        cos, sin = _rotary(positions, self._head, self._theta)
        given = {"embedded": embedded, "bias": bias, "cos": cos, "sin": sin, "past": past}
        states, fresh, logits = self._language(**given, wanted=wanted).values()
        return states, np.concatenate([past, fresh], axis=4), logits


class _Embeddings:
    """Rows of the packed embedding table, unpacked on use."""

    def __init__(self, blocks: NDArray[np.uint8], scale: Floats) -> None:
        self.blocks, self.scale = blocks, scale

    @classmethod
    def load(cls, folder: Path) -> _Embeddings:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(folder / FILE, framework="np") as file:
                return cls(file.get_tensor(EMBEDDINGS), file.get_tensor(EMBEDDINGS + SCALE))
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{folder / FILE} is missing or damaged; get the model again"
            ) from error

    def __call__(self, ids: NDArray[np.int64]) -> Floats:
        """(Q, L) -> (Q, L, d)."""
        return dequantise(self.blocks[ids], self.scale[ids])


def _handle(stream: _Stream, row: int) -> _Handle:
    """One row's cache without its padding."""
    return _Handle(stream.past[:, :, row : row + 1, :, stream.seen[row]], stream.logits[row])


def _refused(stream: _Stream, row: int, end: int, logits: Floats) -> _Handle:
    """The words of a refusal follow the question, not the opening that was not taken."""
    return _Handle(stream.past[:, :, row : row + 1, :, :end], logits)


def _pad_right(rows: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Token ids and mask (Q, L) of rows of unequal length."""
    length = max(len(row) for row in rows)
    ids = np.array([row + [0] * (length - len(row)) for row in rows])
    return ids, np.arange(length) < np.array([[len(row)] for row in rows])


def _rotary(positions: NDArray[np.int64], size: int, theta: float) -> tuple[Floats, Floats]:
    """Cosines and sines (Q, L, h) of rotary position embedding, as Llama has them."""
    frequencies = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float32) / size)
    angles = positions[..., None].astype(np.float32) * frequencies
    both = np.concatenate([angles, angles], axis=-1)
    return np.cos(both).astype(np.float32), np.sin(both).astype(np.float32)


def _softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
