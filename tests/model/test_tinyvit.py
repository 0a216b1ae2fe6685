"""TinyViT's own parts: windows, padding, distances, folded norms."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import randomise, segmenter_config

from medisee.model.tinyvit import (
    Block,
    ConvNorm,
    Downsample,
    TinyViT,
    WindowAttention,
    fold_batch_norms,
    relative_offsets,
)


def test_offsets_number_the_distances_in_the_order_of_their_first_meeting():
    """The original's own loop: all pairs of positions, each new |dy|, |dx| gets the next number."""
    for window in (3, 7):
        positions = [(row, column) for row in range(window) for column in range(window)]
        numbers, table = {}, []
        for y, x in positions:
            for v, u in positions:
                distance = (abs(y - v), abs(x - u))
                table.append(numbers.setdefault(distance, len(numbers)))
        expected = torch.tensor(table).view(window**2, window**2)
        assert torch.equal(relative_offsets(window), expected)


def test_attention_is_a_softmax_over_the_window_with_a_bias_for_the_distance():
    attention = randomise(WindowAttention(8, 2, 3)).eval()
    x = torch.randn(2, 9, 8)
    mixed = []
    for batch in attention.qkv(attention.norm(x)):
        heads = []
        for head in range(2):
            query, key, value = batch[:, 12 * head : 12 * head + 12].split(4, dim=1)
            bias = attention.attention_biases[head][relative_offsets(3)]
            heads.append((query @ key.T / 2 + bias).softmax(-1) @ value)
        mixed.append(torch.cat(heads, dim=1))
    torch.testing.assert_close(attention(x), attention.proj(torch.stack(mixed)))


def test_windows_do_not_see_each_other():
    block = randomise(Block(8, 2, 4, 2.0)).eval()
    x = torch.randn(1, 8, 8, 8)
    changed = x.clone()
    changed[:, :, :4, :4] = torch.randn(1, 8, 4, 4)
    difference = (block._attend(x) - block._attend(changed)).abs().amax(dim=1)[0]
    assert (difference[:4, :4] > 1e-5).all()
    assert difference[4:].max() < 1e-5
    assert difference[:, 4:].max() < 1e-5


@pytest.mark.parametrize("shape", [(5, 9), (3, 3), (8, 4)])
def test_maps_that_do_not_divide_into_windows_keep_their_shape(shape):
    block = randomise(Block(8, 2, 4, 2.0)).eval()
    assert block(torch.randn(2, 8, *shape)).shape == (2, 8, *shape)


def test_zero_padding_takes_part_in_the_attention():
    """As in the original: a window at the border attends to the zeros beside it."""
    block = randomise(Block(8, 2, 4, 2.0)).eval()
    x = torch.randn(1, 8, 3, 3)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
    torch.testing.assert_close(block._attend(x), block._attend(padded)[:, :, :3, :3])


@pytest.mark.parametrize("stride", [1, 2])
def test_downsampling_halves_only_with_its_stride(stride):
    merge = randomise(Downsample(8, 12, stride)).eval()
    side = 8 // stride
    assert merge(torch.randn(1, 8, 8, 8)).shape == (1, 12, side, side)


def test_folded_norms_give_the_same_embedding():
    vit = randomise(TinyViT(segmenter_config().tinyvit_config)).eval()
    folded = copy.deepcopy(vit)
    fold_batch_norms(folded)
    assert any(isinstance(module, ConvNorm) for module in vit.modules())
    assert not any(isinstance(module, ConvNorm) for module in folded.modules())
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(folded(pixels), vit(pixels), rtol=1e-3, atol=1e-4)
