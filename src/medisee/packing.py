"""Small weight files: matrices of the language model as 8-bit blocks with a scale each, rest fp16.

    packed["name"]        uint8 (rows, blocks, block), 128 being zero
    packed["name.scale"]  float32 (rows, blocks)

A packed folder holds `packed.safetensors` in place of `model.safetensors`, so that nothing reads
the integers as weights by mistake. The layout is the one that ONNX Runtime's MatMulNBits reads, so
one copy of the weights serves both runtimes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = "packed.safetensors"
SCALE = ".scale"
QUANTISED = "mllm.language_model."
ZERO = 128

Arrays = dict[str, NDArray[np.generic]]


def pack(state: Mapping[str, NDArray[np.generic]]) -> Arrays:
    """State dict in fp32 -> packed arrays. Tied weights must be left out already."""
    packed: Arrays = {}
    for name, value in state.items():
        block = block_size(value.shape[-1]) if value.ndim == 2 else None
        if name.startswith(QUANTISED) and block is not None:
            packed[name], packed[name + SCALE] = _quantise(value, block)
        else:
            floating = np.issubdtype(value.dtype, np.floating)
            packed[name] = value.astype(np.float16) if floating else value
    return packed


def unpack(packed: Mapping[str, NDArray[np.generic]]) -> Arrays:
    """Packed arrays -> state dict in fp32."""
    state: Arrays = {}
    for name, value in packed.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in packed:
            continue
        if name + SCALE in packed:
            state[name] = dequantise(value, packed[name + SCALE])
        else:
            floating = np.issubdtype(value.dtype, np.floating)
            state[name] = value.astype(np.float32) if floating else value
    return state


def block_size(width: int) -> int | None:
    """Weights that share a scale: the largest of 64, 32 and 16 that divides a row."""
    return next((size for size in (64, 32, 16) if width % size == 0), None)


def dequantise(blocks: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.float32]:
    """(..., blocks, block) uint8 and (..., blocks) -> (..., blocks * block) float32."""
    values = (blocks.astype(np.float32) - ZERO) * scale[..., None]
    return values.reshape(*blocks.shape[:-2], -1)


def _quantise(
    value: NDArray[np.generic], block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    blocks = value.astype(np.float32).reshape(len(value), -1, block)
    scale = np.maximum(np.abs(blocks).max(axis=2), 1e-8) / 127
    return (np.rint(blocks / scale[..., None]) + ZERO).astype(np.uint8), scale


def save_packed(state: Mapping[str, NDArray[np.generic]], folder: Path) -> None:
    """Packs a state dict into a folder."""
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(value, order="C") for name, value in pack(state).items()}
    save_file(arrays, folder / FILE, metadata={"format": "np"})


def load_packed(folder: Path) -> Arrays:
    """The state dict of a packed folder, in fp32."""
    from safetensors.numpy import load_file

    return unpack(load_file(folder / FILE))
