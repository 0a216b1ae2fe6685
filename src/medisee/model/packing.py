"""Small weight files: matrices of the language model as int8 with a scale per row, the rest fp16.

    packed["name"]        int8 (rows, columns)
    packed["name.scale"]  float32 (rows,)

A packed folder holds `packed.safetensors` in place of `model.safetensors`, so that nothing reads
the integers as weights by mistake. int8 per row costs nano no accuracy that could be measured.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE = "packed.safetensors"
SCALE = ".scale"
QUANTISED = "mllm.language_model."


def pack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict in fp32 -> packed tensors. Tied tensors must be left out already."""
    packed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(QUANTISED) and value.dim() == 2:
            scale = value.abs().amax(dim=1).clamp(min=1e-8) / 127
            packed[name] = (value / scale[:, None]).round().to(torch.int8)
            packed[name + SCALE] = scale.float()
        else:
            packed[name] = value.half() if value.is_floating_point() else value
    return {name: value.contiguous() for name, value in packed.items()}


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Packed tensors -> state dict in fp32."""
    state: dict[str, Tensor] = {}
    for name, value in packed.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in packed:
            continue
        if value.dtype == torch.int8:
            state[name] = value.float() * packed[name + SCALE][:, None]
        else:
            state[name] = value.float() if value.is_floating_point() else value
    return state


def save_packed(state: dict[str, Tensor], folder: Path) -> None:
    """Packs a state dict into a folder."""
    save_file(pack(state), folder / FILE, metadata={"format": "pt"})


def load_packed(folder: Path) -> dict[str, Tensor]:
    """The state dict of a packed folder, in fp32."""
    return unpack(load_file(folder / FILE))
