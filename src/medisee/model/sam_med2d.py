"""SAM-Med2D's adapters: a second branch beside each block's MLP (Cheng et al. 2023, figure 4).

Shape letters: B images, H and W rows and columns of the grid, C width of the ViT.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamMLPBlock, SamVisionEncoder


class Adapter(nn.Module):
    """A gate over channels, then a detour through half the resolution: (B, H, W, C) -> same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(
            nn.Linear(width, width // 4, bias=False),
            nn.ReLU(),
            nn.Linear(width // 4, width, bias=False),
            nn.Sigmoid(),
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gated = x * self.channel(x.mean(dim=(1, 2), keepdim=True))
        detour = self.spatial(gated.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(x + detour)


class AdaptedMLP(SamMLPBlock):
    """A block's MLP with its adapter; both read what the block's second norm gives."""

    def __init__(self, config: SamVisionConfig) -> None:
        super().__init__(config)
        self.adapter = Adapter(config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        mixed: Tensor = super().forward(hidden_states)
        return mixed + self.adapter(hidden_states)


class AdaptedVisionEncoder(SamVisionEncoder):
    """SAM's ViT with an adapter in every block."""

    def __init__(self, config: SamVisionConfig) -> None:
        super().__init__(config)
        for layer in self.layers:
            layer.mlp = AdaptedMLP(config)
