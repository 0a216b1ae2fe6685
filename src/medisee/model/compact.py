"""Linear layers that keep their weights small: bf16, 8-bit or 4-bit integers with scales.

Only storage is fixed here. Products of many rows are made in the precision of the input, from
weights that are widened layer by layer; products of few rows (decoding) read the small weights
directly where torch has a kernel for it. Processors without bf16 units thus prefill at the speed
of fp32 and decode at that of the smaller weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 32
"""Weights of a row that share a scale at four bits."""

FEW_ROWS = 8
"""Up to so many rows the small weights are read directly."""


class CompactLinear(nn.Module):
    """A linear layer with stored weights of 16, 8 or 4 bits.

    Attributes:
        stored: (out, in) bf16 or int8; (out, in / 2) uint8, two weights a byte.
        scale: (out, 1) for 8 bits, (out, in / 32) for 4; none for 16.
    """

    stored: Tensor
    scale: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.out_features, self.in_features = weight.shape
        stored, scale = _STORE[bits](weight)
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // max(self.in_features, 1)
        if rows <= FEW_ROWS and x.device.type == "cpu" and self.bits > 4:
            y = self._few(x.reshape(rows, -1).to(torch.bfloat16))
            y = y.to(x.dtype).view(*x.shape[:-1], -1)
        else:
            y = F.linear(x, self.widened(x.dtype))
        return y if self.bias is None else y + self.bias

    def _few(self, x: Tensor) -> Tensor:
        """(rows, in) bf16 -> (rows, out) bf16 by kernels that read the small weights."""
        if self.scale is None:
            return F.linear(x, self.stored)
        return torch._weight_int8pack_mm(x, self.stored, self.scale[:, 0].to(x.dtype))

    def widened(self, dtype: torch.dtype) -> Tensor:
        """(out, in) weights as numbers."""
        if self.scale is None:
            return self.stored.to(dtype)
        if self.bits == 8:
            return self.stored.to(dtype) * self.scale.to(dtype)
        low, high = self.stored & 15, self.stored >> 4
        nibbles = torch.stack([low, high], dim=-1).view(self.out_features, -1, GROUP)
        return ((nibbles.to(dtype) - 8) * self.scale.to(dtype)[..., None]).flatten(1)


def _store16(weight: Tensor) -> tuple[Tensor, None]:
    return weight.to(torch.bfloat16), None


def _store8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = (weight.float().abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    return (weight.float() / scale).round().to(torch.int8), scale


def _store4(weight: Tensor) -> tuple[Tensor, Tensor]:
    groups = weight.float().view(len(weight), -1, GROUP)
    # The extreme takes -8, so that sixteen steps serve both signs.
    extreme = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    scale = -extreme / 8
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    nibbles = ((groups / scale).round() + 8).clamp(0, 15).to(torch.uint8).view(len(weight), -1)
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4, scale[..., 0]


_STORE: dict[int, Callable[[Tensor], tuple[Tensor, Tensor | None]]] = {
    16: _store16,
    8: _store8,
    4: _store4,
}


def fits(layer: nn.Linear, bits: int) -> bool:
    """Whether a layer can be kept so; four bits need whole groups."""
    return bits > 4 or layer.in_features % GROUP == 0
