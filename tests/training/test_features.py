"""Views of images and their cached features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medisee.training.encoding import encode_images
from medisee.training.features import PREPROCESSING, FeatureCache, View, fingerprint

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
    assert View(0, "a").image(DISPLAY) is DISPLAY


def test_a_view_follows_from_its_number_and_seed():
    images = [View(number, seed).image(DISPLAY) for number, seed in ((1, "a"), (1, "a"), (2, "a"))]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(20, 80), st.integers(20, 80), st.booleans())
def test_a_view_leaves_every_pixel_in_its_place(number, height, width, colour):
    """The edge of a bright half stays where it was, whatever the intensities became."""
    display = np.full((height, width, 3), 30, np.uint8)
    display[:, width // 2 :] = (220, 180, 150) if colour else 220
    shown = View(number, "seed").image(display)
    assert shown.shape == display.shape
    assert shown.dtype == np.uint8
    steps = np.abs(np.diff(shown.astype(float).mean(axis=(0, 2))))
    if steps.max() > 25:  # a free tone curve may make both halves alike
        assert abs(int(steps.argmax()) + 1 - width // 2) <= 2


def test_views_differ_in_more_than_brightness():
    """Of a grey ramp, some views keep the order of grey values, and some do not."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)
    rising = [
        np.corrcoef(ramp.mean((0, 2)), View(number, "x").image(ramp).mean((0, 2)))[0, 1]
        for number in range(1, 40)
    ]
    assert sum(value > 0.9 for value in rising) > 15
    assert sum(value < 0.5 for value in rising) > 3


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


def test_another_image_under_an_old_name_is_encoded_anew(tmp_path, file):
    cache = FeatureCache(tmp_path / "cache", "id", 64)
    cache.fill(file, 0, Encoder())
    before = cache.path(file, 0)
    Image.fromarray(255 - DISPLAY).save(file)
    assert cache.path(file, 0) != before
    copy = file.with_name("copy.png")
    copy.write_bytes(file.read_bytes())
    assert cache.path(copy, 0) == cache.path(file, 0)


def test_the_preprocessing_has_not_changed_under_its_number(tmp_path, file):
    """Where this fails, raise `PREPROCESSING` and note the new figures."""
    cache = FeatureCache(tmp_path / "cache", "id", 64)
    figures = [
        figure
        for view in (0, 1)
        for pixels in [cache.input(file, view).pixels]
        for figure in (pixels.mean(), pixels.std(), np.abs(np.diff(pixels)).mean())
    ]
    assert PREPROCESSING == 2
    assert figures == pytest.approx([0.3323, 0.2831, 0.1234, 0.3132, 0.2733, 0.1168], abs=2e-3)


def test_a_fingerprint_changes_with_any_weight():
    assert fingerprint(Encoder()) == fingerprint(Encoder())
    assert fingerprint(Encoder()) != fingerprint(Encoder(1.0001))


def test_only_missing_images_are_encoded(tmp_path, file):
    second = tmp_path / "second.png"
    Image.fromarray(255 - DISPLAY).save(second)
    cache = FeatureCache(tmp_path / "cache", "id", 64)
    cache.fill(file, 0, Encoder(3.0))
    before = cache.path(file, 0).read_bytes()
    encode_images(cache, [(file, 0), (second, 0)], Encoder())
    assert cache.path(file, 0).read_bytes() == before
    expected = Encoder()(torch.from_numpy(cache.input(second, 0).pixels)[None])[0]
    np.testing.assert_allclose(cache.load(second, 0), expected.detach().numpy(), atol=0.01)
