"""All that is new in the paper: candidate routers, box decoder, mask-prompt projector.

Shape letters: Q targets, n candidate tokens, d width of the language model, C prompt channels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration import MediSeeConfig


class CandidateRouter(nn.Module):
    """Fusion weights of the n candidates: sigmoid, divided by the sum (no softmax)."""

    def __init__(self, width: int, candidates: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Linear(candidates * width, hidden), nn.GELU(), nn.Linear(hidden, candidates)
        )

    def forward(self, states: Tensor) -> Tensor:
        """(Q, n, d) candidate states in the config's order -> (Q, n) weights that sum to one."""
        scores = self.gate(states.flatten(1)).float()
        # Equal to sigmoid(s) / sum(sigmoid(s)), and defined where every sigmoid underflows to 0.
        return F.softmax(F.logsigmoid(scores), dim=-1).to(states.dtype)


class AdaptiveFusion(nn.Module):
    """Adaptive democratic candidate fusion: h_seg and h_det from the candidates' states.

    `soft` weighs all candidates by two routers, `hard` gives each decoder its own token's state,
    `single` shares the one state that there is.
    """

    def __init__(self, config: MediSeeConfig) -> None:
        super().__init__()
        self.kind = config.fusion
        if self.kind == "soft":
            sizes = (config.hidden_size, config.num_candidates, config.router_hidden)
            self.router_seg = CandidateRouter(*sizes)
            self.router_det = CandidateRouter(*sizes)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, n, d) -> h_seg (Q, d), h_det (Q, d)."""
        if self.kind == "single":
            return states[:, 0], states[:, 0]
        if self.kind == "hard":
            return states[:, 1], states[:, 0]
        weights = torch.stack([self.router_seg(states), self.router_det(states)])
        h_seg, h_det = torch.einsum("sqn,qnd->sqd", weights, states)
        return h_seg, h_det


class BoxMLP(nn.Module):
    """Linear-ReLU x 2, Linear with a zero start, sigmoid: (Q, width) -> cxcywh in 0..1."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        sizes = [width, hidden, hidden, 4]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.reset()

    def reset(self) -> None:
        """Every fresh box is the centred one of half the side (the authors' start)."""
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x).sigmoid()


class BoxDecoder(nn.Module):
    """The paper's box decoder: h_det alone says where."""

    def __init__(self, config: MediSeeConfig) -> None:
        super().__init__()
        self.mlp = BoxMLP(config.hidden_size, config.box_hidden)

    def forward(self, h_det: Tensor, embedding: Tensor, content: Tensor) -> Tensor:
        """h_det (Q, d) -> box (Q, 4), cxcywh relative to the image without its padding."""
        return self.mlp(h_det)


class GroundedBoxDecoder(nn.Module):
    """Beyond the paper: h_det says what, attention over the segmenter's embedding finds where.

    The embedding is pooled to a grid; a 3 x 3 convolution and one self-attention layer give it
    context; h_det, as a query, attends to it through a few cross-attention layers and colours a
    heat map of the grid. The query, corrected by where the heat lies, goes into the same MLP,
    whose box lies in the padded square and is then related to the content.
    """

    def __init__(self, config: MediSeeConfig) -> None:
        super().__init__()
        width, side = config.grounding_width, config.grounding_grid
        channels = config.segmenter.prompt_channels
        self.grid = side
        self.query = nn.Linear(config.hidden_size, width)
        self.pixels = nn.Conv2d(channels, width, 1)
        self.context = nn.Conv2d(width, width, 3, padding=1)
        self.positions = nn.Parameter(torch.randn(side * side, width) * 0.02)
        self.encoder = nn.TransformerEncoderLayer(
            width, 8, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width,
                8,
                2 * width,
                dropout=0.1,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.grounding_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.heat = nn.Linear(width, width)
        self.extent = nn.Linear(4, width)
        self.mlp = BoxMLP(width, config.box_hidden)

    def forward(self, h_det: Tensor, embedding: Tensor, content: Tensor) -> Tensor:
        """Box (Q, 4), cxcywh relative to the image without its padding.

        Args:
            h_det: (Q, d).
            embedding: (Q, C, E, E), or pooled to the grid already.
            content: (Q, 2) width and height of the image as a fraction of the padded square.
        """
        square, _ = self.look(h_det, embedding)
        return square / torch.cat([content, content], dim=1)

    def look(self, h_det: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Box (Q, 4), cxcywh in the padded square, and heat (Q, grid, grid), logits.

        The heat is trained to be the share of each cell that the target covers: hundreds of
        answers a sample where a box gives four.
        """
        memory = self.encoder(self._grid(embedding))
        query = self.query(h_det)[:, None]
        for layer in self.layers:
            query = layer(query, memory)
        query = self.norm(query[:, 0])
        heat = torch.einsum("qd,qnd->qn", self.heat(query), memory) / query.shape[-1] ** 0.5
        heat = heat.view(len(heat), self.grid, self.grid)
        extent = torch.logit(heat_extent(heat), eps=0.01).to(query.dtype)
        return self.mlp(query + self.extent(extent)), heat

    def _grid(self, embedding: Tensor) -> Tensor:
        """(Q, grid^2, width) tokens of the pooled embedding, with positions."""
        pooled = F.adaptive_avg_pool2d(embedding, self.grid)
        pixels = self.pixels(pooled)
        pixels = pixels + F.gelu(self.context(pixels))
        return pixels.flatten(2).transpose(1, 2) + self.positions


def heat_extent(heat: Tensor) -> Tensor:
    """Heat logits (Q, g, g) -> (Q, 4), cxcywh of the even box with its mean and deviation."""
    weights = heat.float().sigmoid()
    weights = weights / weights.sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    places = (torch.arange(heat.shape[-1], device=heat.device) + 0.5) / heat.shape[-1]
    along = torch.stack([weights.sum(dim=1), weights.sum(dim=2)], dim=1)  # (Q, 2: x and y, g)
    centre = along @ places
    variance = (along * (places - centre[..., None]) ** 2).sum(dim=2)
    return torch.cat([centre, (12 * variance).clamp(min=1e-6).sqrt()], dim=1)


class MaskPromptProjector(nn.Module):
    """h_seg (Q, d) -> one sparse embedding (Q, C): Linear, ReLU, Linear."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, channels))

    def forward(self, h_seg: Tensor) -> Tensor:
        return self.layers(h_seg)
