"""The heads' first layers after they were fitted to what the language model emits."""

from __future__ import annotations

import torch
from torch import nn

from medisee.training.align import _absorb


def test_an_affine_distortion_is_undone_exactly():
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(300, 6, generator=generator)
    distortion = torch.eye(6) * 0.4 + 0.1 * torch.randn(6, 6, generator=generator)
    emitted = wanted @ distortion.T + torch.randn(6, generator=generator)
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        before, distorted = layer(wanted), layer(emitted)
        _absorb(layer, emitted, wanted, ridge=1e-9)
        assert (distorted - before).abs().max() > 0.1
        torch.testing.assert_close(layer(emitted), before, rtol=0, atol=1e-4)


def test_states_that_say_nothing_become_the_mean():
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(4000, 6, generator=generator) + 2
    emitted = torch.randn(4000, 6, generator=generator)
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        expected = layer(wanted.mean(dim=0))
        _absorb(layer, emitted, wanted)
        assert (layer(emitted) - expected).abs().mean() < 0.05


def test_the_fit_is_the_best_linear_one():
    """No small change of the matrix or the offset comes nearer to the wanted states."""
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(500, 6, generator=generator)
    emitted = 0.5 * wanted + 0.3 * torch.randn(500, 6, generator=generator)
    layer = nn.Linear(6, 6)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(6))
        layer.bias.zero_()
        _absorb(layer, emitted, wanted, ridge=1e-9)

        def error():
            return float((layer(emitted) - wanted).square().mean())

        least = error()
        for parameter in (layer.weight, layer.bias):
            for sign in (1, -1):
                change = sign * 0.02 * torch.randn(parameter.shape, generator=generator)
                parameter.add_(change)
                assert error() > least
                parameter.sub_(change)
