from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisee.calibration import Calibration, fit_logistic, refusal_threshold
from medisee.errors import DataError, ModelError


def sample(n=4000, seed=0):
    rng = np.random.default_rng(seed)
    raw = rng.normal(0, 2, n)
    return raw, rng.random(n) < 1 / (1 + np.exp(-(1.5 * raw - 1)))


def test_finds_the_true_probability():
    raw, correct = sample()
    grid = np.linspace(-2, 3, 11)
    expected = 1 / (1 + np.exp(-(1.5 * grid - 1)))
    assert np.abs(fit_logistic(raw, correct)(grid) - expected).max() < 0.08


def test_logistic_parameters():
    slope, offset = fit_logistic(*sample()).y
    assert slope == pytest.approx(1.5, abs=0.15)
    assert offset == pytest.approx(-1, abs=0.15)


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=20, max_size=60))
def test_always_a_probability(pairs):
    raw, correct = np.array(pairs, dtype=float).T
    values = fit_logistic(raw, correct)(np.linspace(-6, 6, 50))
    assert np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()


def test_separable_scores_do_not_blow_up():
    raw = np.linspace(-1, 1, 40)
    assert np.isfinite(fit_logistic(raw, raw > 0).y).all()


def test_save_and_load(tmp_path):
    fitted = fit_logistic(*sample())
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


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.5, 1))
def test_threshold_answers_enough_and_no_more_than_it_must(present, keep):
    present = np.array(present)
    cut = refusal_threshold(present, keep)
    assert (present <= cut).mean() >= keep - 1e-9
    lower = present[present < cut]
    assert not lower.size or (present <= lower.max()).mean() < keep


def test_too_little_data():
    with pytest.raises(DataError, match="at least"):
        fit_logistic([0.5], [True])
    with pytest.raises(DataError, match="finite"):
        fit_logistic([np.nan] * 30, [True] * 30)
    with pytest.raises(DataError, match="whose target is there"):
        refusal_threshold([])
