"""The heads' first layers after they were fitted to what the language model emits."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from medisee.categories import Categories
from medisee.training.align import SPREAD, _absorb, read_as_emitted


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


def test_heads_know_a_category_by_the_mean_of_what_is_emitted():
    fixed = np.zeros((3, 2, 4), np.float32)
    emitted = np.array([1.0, 3.0, 6.0], np.float32)[:, None, None] * np.ones((3, 2, 4), np.float32)
    categories = read_as_emitted(Categories("abc", fixed), emitted, np.array([0, 0, 2]))
    assert categories.read is not None
    means = np.array([2.0, 0.0, 6.0])  # the second one was not emitted and keeps its state
    expected = 4 + SPREAD * (means - 4)
    expected[1] = 0
    assert np.allclose(categories.read, expected[:, None, None])
