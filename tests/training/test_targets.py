"""Targets as arrays, and geometric augmentation: boxes, masks and maps move together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import write_data

from medisee.boxes import mask_to_box
from medisee.data.sa_med2d import Index
from medisee.training.features import FeatureCache
from medisee.training.targets import (
    COARSE,
    POOLED,
    Targets,
    crop_boxes,
    crop_maps,
    random_windows,
    visible_share,
)

SIDE = 96


@st.composite
def boxes_and_windows(draw):
    """A box of whole pixels of the SIDE square away from its border, and a window."""
    x1, y1 = draw(st.integers(2, SIDE - 12)), draw(st.integers(2, SIDE - 12))
    x2, y2 = draw(st.integers(x1 + 8, SIDE - 2)), draw(st.integers(y1 + 8, SIDE - 2))
    size = [draw(st.floats(0.6, 1.1)) for _ in range(2)]
    start = [draw(st.floats(-0.1, 1.1 - length)) for length in size]
    return (x1, y1, x2, y2), torch.tensor([[*start, *size]])


def cxcywh(corners):
    x1, y1, x2, y2 = corners
    return torch.tensor([[(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]]) / SIDE


@settings(deadline=None)
@given(boxes_and_windows())
def test_cropped_boxes_agree_with_the_cropped_mask(case):
    corners, window = case
    x1, y1, x2, y2 = corners
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[0, 0, y1:y2, x1:x2] = 1
    box = crop_boxes(cxcywh(corners), window)[0]
    seen = mask_to_box(crop_maps(mask, window, 4 * SIDE)[0, 0].numpy() > 0.5)
    low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
    assert (low >= -1e-6).all()
    assert (high <= 1 + 1e-6).all()
    if box[2:].min() * SIDE >= 2:  # of less, bilinear sampling leaves only rounded corners
        wanted = torch.tensor(seen) / (4 * SIDE)
        assert (torch.cat([low, high]) - wanted).abs().max() < 2 / (4 * SIDE)


@settings(deadline=None)
@given(boxes_and_windows())
def test_the_visible_share_is_the_share_of_the_masks_pixels(case):
    corners, window = case
    x, y, width, height = window[0].tolist()
    x1, y1, x2, y2 = (value / SIDE for value in corners)
    across = max(min(x2, x + width) - max(x1, x), 0) * max(min(y2, y + height) - max(y1, y), 0)
    share = float(visible_share(cxcywh(corners), window)[0])
    assert share == pytest.approx(across / ((x2 - x1) * (y2 - y1)), abs=1e-4)


def test_the_whole_window_changes_nothing():
    maps, whole = torch.randn(2, 3, 8, 8), torch.tensor([[0.0, 0, 1, 1]] * 2)
    torch.testing.assert_close(crop_maps(maps, whole, 8), maps)
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.5, 0.5, 1.0, 1.0]])
    torch.testing.assert_close(crop_boxes(boxes, whole), boxes)


def test_a_quarter_window_enlarges_twice():
    maps = torch.arange(64.0).view(1, 1, 8, 8)
    shown = crop_maps(maps, torch.tensor([[0.5, 0.0, 0.5, 0.5]]), 4)  # right, upper quarter
    torch.testing.assert_close(shown[0, 0], maps[0, 0, :4, 4:])
    box = crop_boxes(torch.tensor([[0.75, 0.25, 0.1, 0.2]]), torch.tensor([[0.5, 0.0, 0.5, 0.5]]))
    torch.testing.assert_close(box, torch.tensor([[0.5, 0.5, 0.2, 0.4]]))


@pytest.mark.parametrize("share, expected", [(0.0, (0, 0)), (0.5, (400, 600)), (1.0, (1000, 1000))])
def test_the_share_of_windows_that_differ(share, expected):
    windows = random_windows(1000, share, np.random.default_rng(0))
    changed = int((windows != torch.tensor([0.0, 0, 1, 1])).any(dim=1).sum())
    assert expected[0] <= changed <= expected[1]
    assert (windows[:, 2:] > 0.59).all()
    assert (windows[:, 2:] < 1.2).all()
    assert (windows[:, :2] > -0.16).all()
    assert (windows[:, :2] + windows[:, 2:] < 1.16).all()


# ---- a data set's targets ------------------------------------------------------------------------


class Halves(torch.nn.Module):
    """An "encoder" whose embedding is 2 channels of the input's own brightness, 16 x 16."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, pixels):
        grey = torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 4)
        return torch.cat([grey, 1 - grey], dim=1) * self.scale


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    root = tmp_path_factory.mktemp("targets")
    index = Index.open(write_data(root / "data"))
    cache = FeatureCache(root / "cache", "halves", 64)
    for record in index.records("train"):
        cache.fill(index.root / record.image, 0, Halves())
    return Targets(index, "train", ["liver", "spleen"], cache, 64)


def test_every_labelled_mask_is_a_target(targets):
    assert len(targets.images) == 3
    assert [(t.image, t.label) for t in targets.targets] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert targets.originals == [(48, 64)] * 3
    assert torch.equal(targets.content, torch.tensor([[1.0, 0.75]] * 3))


def test_boxes_lie_in_the_padded_square_around_their_masks(targets):
    for target in targets.targets:
        mask = targets.mask(target.image, [targets.labels[target.label]])
        assert mask.shape == (64, 64)
        assert not mask[48:].any()  # the padding
        seen = torch.tensor(mask_to_box(mask.numpy())) / 64
        cx, cy, width, height = target.box
        corners = [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
        assert corners == pytest.approx(seen.tolist(), abs=1e-6)


def test_a_mask_of_several_labels_is_their_union(targets):
    both = targets.mask(0, ["liver", "spleen"])
    assert torch.equal(both, targets.mask(0, ["liver"]) | targets.mask(0, ["spleen"]))


def test_features_lie_over_their_masks(targets):
    """Of the drawn images, the liver is the brightest."""
    for target in targets.targets:
        if targets.labels[target.label] == "liver":
            mask = targets.mask(target.image, ["liver"]).view(16, 4, 16, 4).float().mean((1, 3))
            features = targets.features(target.image)[0]
            assert features[mask == 1].min() > features[mask == 0].max()
    assert targets.pooled.shape == (3, 1, 2, POOLED, POOLED)
    torch.testing.assert_close(targets.pooled[1, 0].float(), targets.features(1))


def test_coarse_shares_are_those_of_the_mask(targets):
    assert targets.coarse.shape == (5, COARSE, COARSE)
    for target, share in zip(targets.targets, targets.coarse, strict=True):
        mask = targets.mask(target.image, [targets.labels[target.label]]).float()
        assert (share.float() - mask).abs().mean() < 0.01


def test_frequent_categories_share_as_their_square_root(targets):
    weights = targets.sampling_weights()
    assert weights.sum() == pytest.approx(1)
    liver = sum(w for w, t in zip(weights, targets.targets, strict=True) if t.label == 0)
    assert liver / (1 - liver) == pytest.approx((3 / 2) ** 0.5)
