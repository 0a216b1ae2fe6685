"""Category states: the nearest one names what a candidate's state means."""

from __future__ import annotations

import numpy as np

from medisee.categories import Categories


def drawn(count: int = 5) -> Categories:
    random = np.random.default_rng(0)
    common = random.standard_normal((1, 2, 64)).astype(np.float32)
    states = common + random.standard_normal((count, 2, 64)).astype(np.float32)
    return Categories([f"organ {k}" for k in range(count)], states)


def test_the_own_part_decides_whatever_its_length():
    categories = drawn()
    common = categories.common
    for length in (0.1, 1.0, 7.0):
        emitted = common + length * (categories.states - common)
        assert categories.nearest(emitted) == list(categories.names)


def test_noise_smaller_than_the_own_part_does_not_matter():
    categories = drawn()
    noise = 0.3 * np.random.default_rng(1).standard_normal(categories.states.shape)
    assert categories.nearest(categories.states + noise) == list(categories.names)


def test_kept_with_a_model(tmp_path):
    categories = drawn()
    categories.save(tmp_path)
    again = Categories.load(tmp_path)
    assert again is not None
    assert again.names == categories.names
    assert np.allclose(again.states, categories.states, atol=2e-3)


def test_a_model_may_have_none(tmp_path):
    assert Categories.load(tmp_path) is None
