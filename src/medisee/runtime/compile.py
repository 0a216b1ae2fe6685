"""Writes the graphs that `OnnxRuntime` runs, from a trained nano-like model.

    encoder.onnx     pixels ─▶ embedding, image tokens
    language.onnx    embedded tokens, bias, rotary cos and sin, past ─▶ states, keys, values
    locate.onnx      candidate states, embedding, image states ─▶ boxes, mask logits, ...

The graphs hold no weights: each names a place in the folder's `packed.safetensors` as ONNX
external data, so that one copy serves both runtimes. fp16 weights are cast when a session loads;
8-bit matrices are multiplied as they are (MatMulNBits).
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaModel, apply_rotary_pos_emb

from ..errors import ModelError
from ..model import MediSeeModel
from ..model.inference import load_weights
from ..model.mllm import SharedEncoderMLLM
from ..packing import FILE, SCALE
from .graphs import DIGEST, weights_digest

OPSET = 20
"""The first one with GELU as one operator."""

ACCURACY = 4
"""MatMulNBits rounds activations to 8 bits too, block by block: 20 times as fast for one token."""

OWNER = "model."
"""Every exported module holds the whole model, so that its weights bear their stored names."""


def compile_graphs(folder: Path) -> list[Path]:
    """Writes the three graphs into a model folder with packed weights; returns their paths.

    Raises:
        ModelError: a folder without packed weights, or a model of another kind than nano's.
    """
    if not (folder / FILE).is_file():
        raise ModelError(f"{folder} holds no {FILE}: only a finished nano-like model is compiled")
    model = load_weights(folder)
    if not isinstance(model.mllm, SharedEncoderMLLM) or not isinstance(
        model.mllm.language_model, LlamaModel
    ):
        raise ModelError(f"{folder} does not share the segmenter's encoder: it runs on torch only")
    stored = stored_arrays(folder / FILE)
    written = []
    for name, part in _parts(model):
        graph = _plain_casts(_export(part))
        _point_to(graph, stored, model.all_tied_weights_keys)
        graph.metadata_props.add(key=DIGEST, value=weights_digest(folder))
        written.append(folder / f"{name}.onnx")
        onnx.save(graph, written[-1])
    return written


# ---- the parts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A module to export: example inputs, names of the outputs, and which sizes vary."""

    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]
    dynamic: dict[str, list[int]]


class EncoderGraph(nn.Module):
    """pixels (1, 3, S, S) -> embedding (1, C, E, E), image tokens (1, N, d)."""

    def __init__(self, model: MediSeeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.model.segmenter.encode(pixels)
        return embedding, self.model.mllm.projector(embedding)


class LanguageGraph(nn.Module):
    """A Llama decoder over embedded tokens, its cache going in and out as plain arrays."""

    def __init__(self, model: MediSeeModel) -> None:
        super().__init__()
        self.model = model
        config = model.config.mllm.text_config
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads

    def forward(
        self,
        embedded: Tensor,
        bias: Tensor,
        cos: Tensor,
        sin: Tensor,
        past: Tensor,
        wanted: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States (Q, L, d) after the last norm, fresh keys and values, logits (W, V).

        Args:
            embedded: (Q, L, d).
            bias: (Q, 1, L, P + L), 0 where a token is seen, a large negative number elsewhere.
            cos, sin: (Q, L, h) of the tokens' positions.
            past: (layers, 2, Q, groups, P, h); the fresh ones have L in place of P.
            wanted: (W,) places among the Q L tokens whose logits are wanted.
        """
        fresh = []
        states = embedded
        language = self.model.mllm.language_model
        for layer, cache in zip(language.layers, past, strict=True):
            seen, new = self._attend(layer, layer.input_layernorm(states), bias, cos, sin, cache)
            states = states + seen
            states = states + layer.mlp(layer.post_attention_layernorm(states))
            fresh.append(new)
        states = language.norm(states)
        rows = states.flatten(0, 1)[wanted]
        return states, torch.stack(fresh), rows @ language.embed_tokens.weight.T

    def _attend(
        self, layer: nn.Module, states: Tensor, bias: Tensor, cos: Tensor, sin: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor]:
        attention = layer.self_attn
        rows, length, _ = states.shape
        query = attention.q_proj(states).view(rows, length, self.heads, -1).transpose(1, 2)
        key = attention.k_proj(states).view(rows, length, self.groups, -1).transpose(1, 2)
        value = attention.v_proj(states).view(rows, length, self.groups, -1).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        keys, values = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        share = self.heads // self.groups
        query = query.reshape(rows, self.groups, share * length, -1)
        scores = query @ keys.transpose(2, 3) / query.shape[-1] ** 0.5
        scores = scores.view(rows, self.heads, length, -1) + bias
        chances = scores.softmax(dim=-1).view(rows, self.groups, share * length, -1)
        seen = (chances @ values).view(rows, self.heads, length, -1).transpose(1, 2)
        return attention.o_proj(seen.reshape(rows, length, -1)), torch.stack([key, value])


class LocateGraph(nn.Module):
    """Fusion, box decoder and mask decoder for T targets of one image."""

    def __init__(self, model: MediSeeModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, candidates: Tensor, embedding: Tensor, image_states: Tensor, content: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes (T, 4), mask logits (T, 4E, 4E), quality (T,), similarity (T, N).

        Args:
            candidates: (T, n, d).
            embedding, image_states, content: of the one image, see `MediSeeModel.locate`.
        """
        count = candidates.shape[0]
        located = self.model.locate(
            candidates,
            embedding.expand(count, -1, -1, -1),
            image_states.expand(count, -1, -1),
            content.expand(count, -1),
        )
        return located.boxes, located.mask_logits, located.quality, located.similarity


def _parts(model: MediSeeModel) -> Iterator[tuple[str, _Part]]:
    config, text = model.config, model.config.mllm.text_config
    side, channels = config.segmenter.image_size, config.segmenter.prompt_channels
    cells, tokens, width = side // 4, config.mllm.grid**2, config.hidden_size
    head = text.head_dim
    past = (text.num_hidden_layers, 2, 2, text.num_key_value_heads, 7, head)
    yield (
        "encoder",
        _Part(
            EncoderGraph(model),
            {"pixels": torch.rand(1, 3, side, side)},
            ["embedding", "image_tokens"],
            {},
        ),
    )
    yield (
        "language",
        _Part(
            LanguageGraph(model),
            {
                "embedded": torch.randn(2, 5, width),
                "bias": torch.zeros(2, 1, 5, 12),
                "cos": torch.randn(2, 5, head),
                "sin": torch.randn(2, 5, head),
                "past": torch.randn(past),
                "wanted": torch.tensor([0, 4, 9]),
            },
            ["states", "fresh", "logits"],
            {
                "embedded": [0, 1],
                "bias": [0, 2, 3],
                "cos": [0, 1],
                "sin": [0, 1],
                "past": [2, 4],
                "wanted": [0],
            },
        ),
    )
    yield (
        "locate",
        _Part(
            LocateGraph(model),
            {
                "candidates": torch.randn(2, config.num_candidates, width),
                "embedding": torch.randn(1, channels, cells, cells),
                "image_states": torch.randn(1, tokens, width),
                "content": torch.ones(1, 2),
            },
            ["boxes", "mask_logits", "quality", "similarity"],
            {"candidates": [0]},
        ),
    )


def _export(part: _Part) -> onnx.ModelProto:
    shapes = [
        dict.fromkeys(part.dynamic.get(name, []), torch.export.Dim.DYNAMIC) or None
        for name in part.inputs
    ]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel has no ONNX form
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                part.module.eval(),
                tuple(part.inputs.values()),
                dynamo=True,
                input_names=list(part.inputs),
                output_names=part.outputs,
                dynamic_shapes=tuple(shapes),
                optimize=False,
                verbose=False,
                opset_version=OPSET,
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return program.model_proto


def _plain_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """CastLike -> Cast: ONNX Runtime cannot fold the former, which then hides what could be fused.

    Folded batch norms and whole GELUs make the image encoder a fifth faster.
    """
    typed = onnx.shape_inference.infer_shapes(model).graph
    known = [*typed.value_info, *typed.output]
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    for node in model.graph.node:
        if node.op_type == "CastLike":
            node.op_type = "Cast"
            del node.input[1:]
            node.attribute.append(helper.make_attribute("to", types[node.output[0]]))
    return model


# ---- weights stay where they are -----------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """Where an array lies in a safetensors file: bytes from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def stored_arrays(file: Path) -> dict[str, Stored]:
    """Places of all arrays, from the file's header (8 bytes of length, then JSON)."""
    with file.open("rb") as opened:
        size = struct.unpack("<Q", opened.read(8))[0]
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    return {
        name: Stored(
            entry["dtype"],
            tuple(entry["shape"]),
            8 + size + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


_TYPES = {"F16": TensorProto.FLOAT16, "F32": TensorProto.FLOAT, "U8": TensorProto.UINT8}


def _point_to(
    model: onnx.ModelProto, stored: Mapping[str, Stored], tied: Mapping[str, str]
) -> None:
    """Replaces every weight of the graph by a reference into the packed file."""
    graph = model.graph
    named = {value.name: value.name.removeprefix(OWNER) for value in graph.initializer}
    named = {long: tied.get(name, name) for long, name in named.items()}
    quantised = {n for n, name in named.items() if name + SCALE in stored}
    halves = {n for n, name in named.items() if name in stored and stored[name].dtype == "F16"}
    _multiply_packed(graph, {long: named[long] for long in quantised}, stored)
    kept = [v for v in graph.initializer if v.name not in quantised | halves]
    casts = [
        helper.make_node("Cast", [named[name]], [name], to=TensorProto.FLOAT)
        for name in sorted(halves)
    ]
    external = [_external(named[name], stored[named[name]]) for name in sorted(halves)]
    for name in sorted(quantised):
        external += [_external(part, stored[part]) for part in (named[name], named[name] + SCALE)]
    nodes = [*casts, *graph.node]
    for node in nodes:
        node.ClearField("metadata_props")  # stack traces of the export
        node.ClearField("doc_string")
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*kept, *external])
    graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _multiply_packed(
    graph: onnx.GraphProto, quantised: Mapping[str, str], stored: Mapping[str, Stored]
) -> None:
    """x @ W.T with a packed W becomes one MatMulNBits."""
    turned = {
        node.output[0]: quantised[node.input[0]]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in quantised
    }
    nodes = []
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in turned:
            name = turned[node.input[1]]
            nodes.append(_packed_product(node, name, stored[name].shape))
        elif not (node.output and node.output[0] in turned):
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _packed_product(node: onnx.NodeProto, name: str, shape: tuple[int, ...]) -> onnx.NodeProto:
    rows, blocks, block = shape
    return helper.make_node(
        "MatMulNBits",
        [node.input[0], name, name + SCALE],
        list(node.output),
        domain="com.microsoft",
        K=blocks * block,
        N=rows,
        bits=8,
        block_size=block,
        accuracy_level=ACCURACY,
    )


def _external(name: str, place: Stored) -> TensorProto:
    tensor = TensorProto(name=name, data_type=_TYPES[place.dtype], dims=place.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", FILE), ("offset", place.offset), ("length", place.length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
