from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisee.calibration import Calibration, fit_isotonic, fit_logistic, refusal_threshold
from medisee.errors import DataError, ModelError


def sample(n=4000, seed=0):
    rng = np.random.default_rng(seed)
    raw = rng.normal(0, 2, n)
    return raw, rng.random(n) < 1 / (1 + np.exp(-(1.5 * raw - 1)))


@pytest.mark.parametrize("fit", [fit_isotonic, fit_logistic])
def test_finds_the_true_probability(fit):
    raw, correct = sample()
    grid = np.linspace(-2, 3, 11)
    expected = 1 / (1 + np.exp(-(1.5 * grid - 1)))
    assert np.abs(fit(raw, correct)(grid) - expected).max() < 0.08


def test_logistic_parameters():
    slope, offset = fit_logistic(*sample()).y
    assert slope == pytest.approx(1.5, abs=0.15)
    assert offset == pytest.approx(-1, abs=0.15)


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=20, max_size=60),
    st.sampled_from([fit_isotonic, fit_logistic]),
)
def test_always_a_probability_and_isotonic_never_falls(pairs, fit):
    raw, correct = np.array(pairs, dtype=float).T
    calibration = fit(raw, correct)
    values = calibration(np.linspace(-6, 6, 50))
    assert np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()
    if fit is fit_isotonic:
        assert (np.diff(values) >= -1e-12).all()
        # Pooling keeps the mean: as many expected as counted.
        assert calibration(raw).mean() == pytest.approx(correct.mean())


def test_separable_scores_do_not_blow_up():
    raw = np.linspace(-1, 1, 40)
    assert np.isfinite(fit_logistic(raw, raw > 0).y).all()
    assert fit_isotonic(raw, raw > 0)(1.0) == 1.0


def test_save_and_load(tmp_path):
    fitted = fit_isotonic(*sample())
    kept = Calibration(fitted.kind, fitted.x, fitted.y, refuse_above=0.3)
    kept.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == kept
    assert kept.refuses([0.2, 0.3, 0.4]).tolist() == [False, False, True]
    assert not fitted.refuses(1e9)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '{"format": "other"}',
        json.dumps(
            {
                "format": "medisee.calibration/1",
                "kind": "isotonic",
                "x": [2, 1],
                "y": [0, 1],
                "refuse_above": None,
            }
        ),
    ],
)
def test_a_broken_file_is_named(tmp_path, text):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"calibration.json"):
        Calibration.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        Calibration.load(tmp_path / "calibration.json")


def test_threshold_separates_what_can_be_separated():
    assert refusal_threshold([0.1, 0.2], [0.8, 0.9]) == pytest.approx(0.5)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
)
def test_threshold_answers_enough_and_no_other_is_better(present, absent):
    present, absent = np.array(present), np.array(absent)
    cut = refusal_threshold(present, absent)
    assert (present <= cut).mean() >= 0.92
    best = (present <= cut).mean() + (absent > cut).mean()
    for other in np.linspace(0, 1, 21):
        if (present <= other).mean() >= 0.92:
            assert (present <= other).mean() + (absent > other).mean() <= best + 1e-9


def test_too_little_data():
    with pytest.raises(DataError, match="at least"):
        fit_isotonic([0.5], [True])
    with pytest.raises(DataError, match="finite"):
        fit_logistic([np.nan] * 30, [True] * 30)
    with pytest.raises(DataError, match="with and without"):
        refusal_threshold([], [0.5])
