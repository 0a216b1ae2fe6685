"""TinyViT image encoder as LiteMedSAM uses it (a TinyViT-5M whose stem keeps full resolution).

Written from the published architecture (Wu et al. 2022, "TinyViT"; LiteMedSAM's stride-1 stem and
stride-1 last stage). Module names equal LiteMedSAM's checkpoint, so its weights load strictly.

Shape letters: B images, C channels, H and W rows and columns, N positions of one window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration import TinyViTConfig


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm; `folded()` is the equal single convolution."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(
            channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.add_module("c", conv)
        self.add_module("bn", nn.BatchNorm2d(channels_out))

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        conv, norm = self.c, self.bn
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        fused = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            groups=conv.groups,
        )
        fused.weight.copy_(conv.weight * scale[:, None, None, None])
        fused.bias.copy_(norm.bias - norm.running_mean * scale)
        return fused.to(conv.weight.dtype)


class Stem(nn.Module):
    """Two pointwise convolutions: (B, 3, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.seq = nn.Sequential(ConvNorm(3, half), nn.GELU(), ConvNorm(half, channels))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.seq(pixels)


class InvertedBottleneck(nn.Module):
    """MBConv of the first stage: expand, depthwise 3 x 3, project, add."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.conv1 = ConvNorm(channels, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(self.conv3(hidden) + x)


class Downsample(nn.Module):
    """Patch merging by convolution; the last one keeps its resolution (stride 1)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels_in, channels_out)
        self.conv2 = ConvNorm(channels_out, channels_out, 3, stride, groups=channels_out)
        self.conv3 = ConvNorm(channels_out, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


def relative_offsets(window: int) -> Tensor:
    """Index of |dy|, |dx| for each pair of positions of a window: (window**2, window**2).

    Offsets are numbered row by row, which is the order in which LiteMedSAM first meets them.
    """
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    distance = (rows[:, None] - rows[None]).abs() * window
    return distance + (columns[:, None] - columns[None]).abs()


class WindowAttention(nn.Module):
    """Self-attention within a window, with a learned bias for each distance: (B, N, C) -> same."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        batch, positions, channels = x.shape
        # qkv is laid out head by head: [q k v] of head 1, then of head 2, ...
        qkv = self.qkv(self.norm(x)).view(batch, positions, self.heads, 3, -1)
        query, key, value = qkv.permute(3, 0, 2, 1, 4)
        # Not a buffer: transformers builds models without memory and would leave it unset.
        offsets = relative_offsets(self.window).to(x.device)
        # Four dimensions, or torch takes its slow path on a CPU.
        bias = self.attention_biases[None, :, offsets].to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).reshape(batch, positions, channels))


class Mlp(nn.Module):
    """Layer norm, expansion, GELU, projection, position by position."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class Block(nn.Module):
    """Window attention, a depthwise convolution between the windows, MLP: (B, C, H, W) -> same."""

    def __init__(self, channels: int, heads: int, window: int, mlp_ratio: float) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(channels, heads, window)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))
        self.local_conv = ConvNorm(channels, channels, 3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.local_conv(x + self._attend(x))
        return x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        size = self.window
        # Zero padding takes part in the attention, as in the original.
        padded = F.pad(x, (0, -width % size, 0, -height % size))
        rows, columns = padded.shape[2] // size, padded.shape[3] // size
        tiles = padded.view(batch, channels, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
        tiles = self.attn(tiles.reshape(-1, size * size, channels))
        tiles = tiles.view(batch, rows, columns, size, size, channels).permute(0, 5, 1, 3, 2, 4)
        return tiles.reshape(padded.shape)[:, :, :height, :width]


class Stage(nn.Module):
    """Blocks of one resolution, then the step to the next."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a (B, C, H, W) map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """(B, 3, S, S) pixels in 0..1 -> (B, 256, S/4, S/4) image embedding."""

    def __init__(self, config: TinyViTConfig) -> None:
        super().__init__()
        dims, last = config.embed_dims, len(config.embed_dims) - 1
        self.patch_embed = Stem(dims[0])
        self.layers = nn.ModuleList()
        for stage, dim in enumerate(dims):
            if stage == 0:
                blocks = [
                    InvertedBottleneck(dim, config.expansion) for _ in range(config.depths[0])
                ]
            else:
                heads, window = config.num_heads[stage], config.window_sizes[stage]
                blocks = [
                    Block(dim, heads, window, config.mlp_ratio) for _ in range(config.depths[stage])
                ]
            stride = 1 if stage == last - 1 else 2
            merge = Downsample(dim, dims[stage + 1], stride) if stage < last else None
            self.layers.append(Stage(blocks, merge))
        out = config.output_channels
        self.neck = nn.Sequential(
            nn.Conv2d(dims[-1], out, 1, bias=False),
            ChannelNorm(out, eps=1e-6),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            ChannelNorm(out, eps=1e-6),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels)
        for stage in self.layers:
            x = stage(x)
        return self.neck(x)


@torch.no_grad()
def fold_batch_norms(module: nn.Module) -> None:
    """Replaces every convolution-norm pair by one equal convolution (inference only, in place).

    Two thirds of the encoder's time on a CPU goes into separate batch norms.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, ConvNorm):
            setattr(module, name, child.folded())
        else:
            fold_batch_norms(child)
