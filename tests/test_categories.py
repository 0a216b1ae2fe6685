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
    assert again.read is None
    Categories(categories.names, categories.states, 2 * categories.states).save(tmp_path)
    again = Categories.load(tmp_path)
    assert again is not None
    assert again.read is not None
    assert np.allclose(again.read, 2 * categories.states, atol=4e-3)


def test_the_heads_read_the_category_that_is_meant_without_its_noise():
    plain = drawn()
    read = np.random.default_rng(2).standard_normal(plain.states.shape).astype(np.float32)
    categories = Categories(plain.names, plain.states, read)
    noise = 0.3 * np.random.default_rng(1).standard_normal(plain.states.shape)
    settled = categories.settle((plain.states + noise).astype(np.float32))
    assert settled.dtype == np.float32
    assert np.abs(settled - read).max() < 0.02


def test_between_two_categories_the_heads_read_both():
    plain = drawn()
    categories = Categories(plain.names, plain.states, plain.states)
    between = plain.states[:2].mean(axis=0, keepdims=True)
    settled = categories.settle(between)
    distances = np.linalg.norm((settled - plain.states).reshape(5, -1), axis=1)
    assert set(distances.argsort()[:2].tolist()) == {0, 1}


def test_without_read_states_the_heads_read_what_is_emitted():
    plain = drawn()
    assert plain.settle(plain.states) is plain.states


def test_a_model_may_have_none(tmp_path):
    assert Categories.load(tmp_path) is None


def test_a_category_that_was_added_is_sure_where_it_is_far_ahead(tmp_path):
    plain = drawn()
    assert not plain.sure(plain.states).any()
    Categories(plain.names, plain.states, leads={"organ 2": 0.5}).save(tmp_path)
    categories = Categories.load(tmp_path)
    assert categories is not None
    assert categories.sure(plain.states).tolist() == [False, False, True, False, False]
    between = plain.states[2:4].mean(axis=0, keepdims=True)
    assert not categories.sure(between).any()
    assert categories.sure(plain.states[:0]).shape == (0,)
