"""Whether an image is like those that a model was trained on."""

from __future__ import annotations

import numpy as np
import pytest

from medisee.familiarity import Familiarity, fit_familiarity, summary

RANDOM = np.random.default_rng(5)


def clusters(count, scale=1.0):
    """Summaries (count, 6) around three centres."""
    centres = np.array([[0.0] * 6, [5.0] * 6, [-5.0, 5.0] * 3])
    noise = RANDOM.normal(0, 0.3 * scale, (count, 6))
    return (centres[np.arange(count) % 3] + noise).astype(np.float32)


def embedding_of(values):
    """(1, C, 4, 4) whose mean over positions is `values`."""
    spread = RANDOM.normal(0, 1, (len(values), 4, 4))
    spread -= spread.mean(axis=(1, 2), keepdims=True)
    return (np.asarray(values)[:, None, None] + spread)[None].astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    return fit_familiarity(clusters(300), clusters(200), centres=6)


def test_summary_is_the_mean_over_positions():
    embedding = RANDOM.normal(size=(1, 3, 2, 5)).astype(np.float32)
    expected = [embedding[0, channel].mean() for channel in range(3)]
    np.testing.assert_allclose(summary(embedding), expected, rtol=1e-5)
    np.testing.assert_allclose(summary(embedding[0]), expected, rtol=1e-5)


def test_training_like_images_are_familiar_and_others_are_not(fitted):
    like = [fitted.is_unlike(embedding_of(values)) for values in clusters(200)]
    assert 0 < np.mean(like) < 0.06  # the limit is the 99th percentile of such images
    assert fitted.is_unlike(embedding_of([2.5] * 6))  # between two centres
    assert fitted.is_unlike(embedding_of([30.0] * 6))


def test_distance_is_to_the_nearest_centre_in_units_of_the_spread():
    known = Familiarity(
        np.array([[0.0, 0.0], [10.0, 0.0]], np.float32), np.array([2.0, 4.0], np.float32), 1.0
    )
    assert known.distance(embedding_of([10.0, 4.0])) == pytest.approx((1 / 2) ** 0.5, rel=1e-4)
    assert not known.is_unlike(embedding_of([10.0, 4.0]))
    assert known.distance(embedding_of([6.0, 0.0])) == pytest.approx((4 / 2) ** 0.5, rel=1e-4)
    assert known.is_unlike(embedding_of([6.0, 0.0]))


def test_fitting_again_gives_the_same(fitted):
    train, val = clusters(60), clusters(30)
    first, second = (fit_familiarity(train, val, centres=4) for _ in range(2))
    assert np.array_equal(first.centres, second.centres)
    assert first.limit == second.limit


def test_fewer_images_than_centres_are_enough():
    fitted = fit_familiarity(clusters(5), clusters(5), centres=64)
    assert fitted.centres.shape == (5, 6)
    assert np.isfinite(fitted.limit)


def test_it_survives_its_file(fitted, tmp_path):
    fitted.save(tmp_path)
    loaded = Familiarity.of(tmp_path)
    assert loaded.limit == pytest.approx(fitted.limit)
    for values in clusters(20):
        embedding = embedding_of(values)
        assert loaded.distance(embedding) == pytest.approx(fitted.distance(embedding), abs=1e-3)


def test_a_model_that_stores_none_finds_every_image_familiar(tmp_path):
    unknown = Familiarity.of(tmp_path)
    assert unknown.distance(embedding_of([1e6] * 3)) == 0
    assert not unknown.is_unlike(embedding_of([1e6] * 3))
