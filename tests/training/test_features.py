"""Views of images and their cached features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medisee.training.encoding import encode_images
from medisee.training.features import FeatureCache, View, fingerprint

DISPLAY = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)


class Encoder(torch.nn.Module):
    """Mean of 4 x 4 pixels; counts its calls."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([scale]))
        self.calls = 0

    def forward(self, pixels):
        self.calls += 1
        return torch.nn.functional.avg_pool2d(pixels, 4) * self.scale


def test_view_zero_is_the_image_itself():
    view, mask = View(0, "a"), DISPLAY[..., 0] > 99
    assert view.frame(40, 60) == (0, 0, 60, 40)
    assert view.image(DISPLAY) is DISPLAY
    assert view.mask(mask) is mask


def test_a_view_follows_from_its_number_and_seed():
    images = [View(number, seed).image(DISPLAY) for number, seed in ((1, "a"), (1, "a"), (2, "a"))]
    assert np.array_equal(images[0], images[1])
    assert images[0].shape != images[2].shape or not np.array_equal(images[0], images[2])


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(20, 80), st.integers(20, 80))
def test_image_and_mask_of_a_view_have_the_same_frame(number, height, width):
    mask = np.zeros((height, width), bool)
    mask[height // 3 : 2 * height // 3, width // 4 : 3 * width // 4] = True
    display = np.where(mask[..., None], 255, 0).repeat(3, 2).astype(np.uint8)
    view = View(number, "seed")
    left, top, right, bottom = view.frame(height, width)
    shown, cropped = view.image(display), view.mask(mask)
    assert shown.shape == (bottom - top, right - left, 3)
    assert cropped.shape == shown.shape[:2]
    rows, columns = np.mgrid[top:bottom, left:right]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    expected = mask[rows.clip(0, height - 1), columns.clip(0, width - 1)] & inside
    assert np.array_equal(cropped, expected)


def test_views_are_never_mirrored():
    """Red grows to the right, in every view. (Coloured images are never inverted.)"""
    display = np.full((40, 60, 3), 90, np.uint8)
    display[..., 0] = np.linspace(40, 255, 60)
    for number in range(1, 40):
        view = View(number, "x")
        red = view.image(display)[..., 0].astype(float)
        columns = np.flatnonzero(view.mask(np.ones((40, 60), bool)).any(0))
        third = len(columns) // 3
        assert red[:, columns[:third]].mean() < red[:, columns[-third:]].mean()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(DISPLAY).save(path)
    return path


def test_features_are_computed_once_and_kept(tmp_path, file):
    cache, encoder = FeatureCache(tmp_path / "cache", "id", 64), Encoder()
    for _ in range(2):
        cache.fill(file, 0, encoder)
    assert encoder.calls == 1
    kept = cache.load(file, 0)
    assert kept.dtype == np.float16
    expected = Encoder()(torch.from_numpy(cache.input(file, 0).pixels)[None])[0]
    np.testing.assert_allclose(kept, expected.detach().numpy(), atol=1e-3)
    assert [path.suffix for path in cache.folder.iterdir()] == [".npy"]


def test_views_and_encoders_are_kept_apart(tmp_path, file):
    one = FeatureCache(tmp_path / "cache", "one", 64)
    one.fill(file, 0, Encoder())
    one.fill(file, 1, Encoder())
    assert not np.array_equal(one.load(file, 0), one.load(file, 1))
    other = FeatureCache(tmp_path / "cache", "other", 64)
    assert not other.path(file, 0).exists()


def test_a_fingerprint_changes_with_any_weight():
    assert fingerprint(Encoder()) == fingerprint(Encoder())
    assert fingerprint(Encoder()) != fingerprint(Encoder(1.0001))


def test_only_missing_images_are_encoded(tmp_path, file):
    second = tmp_path / "second.png"
    Image.fromarray(255 - DISPLAY).save(second)
    cache = FeatureCache(tmp_path / "cache", "id", 64)
    cache.fill(file, 0, Encoder(3.0))
    before = cache.path(file, 0).read_bytes()
    encode_images(cache, [file, second], Encoder())
    assert cache.path(file, 0).read_bytes() == before
    expected = Encoder()(torch.from_numpy(cache.input(second, 0).pixels)[None])[0]
    np.testing.assert_allclose(cache.load(second, 0), expected.detach().numpy(), atol=0.01)
