from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisee.boxes import box_iou, cxcywh_to_xyxy
from medisee.evaluation.metrics import (
    Overlap,
    accuracy_at,
    bootstrap_interval,
    bootstrap_intervals,
    cumulative_iou,
    expected_calibration_error,
    holm,
    mean_iou,
    paired_difference,
    refusal_rates,
    risk_coverage,
    surface_dice,
)

masks = st.lists(st.booleans(), min_size=12, max_size=12).map(lambda b: np.array(b).reshape(3, 4))


@given(masks, masks)
def test_overlap_against_sets(predicted, true):
    p = set(zip(*np.nonzero(predicted), strict=True))
    t = set(zip(*np.nonzero(true), strict=True))
    overlap = Overlap.of(predicted, true)
    assert overlap.iou == (len(p & t) / len(p | t) if p | t else 1.0)
    assert overlap.dice == (2 * len(p & t) / (len(p) + len(t)) if p or t else 1.0)
    assert overlap.dice == pytest.approx(2 * overlap.iou / (1 + overlap.iou))


def test_edge_cases():
    empty, full = np.zeros((2, 2), bool), np.ones((2, 2), bool)
    assert Overlap.of(empty, empty).dice == Overlap.of(empty, empty).iou == 1.0
    assert Overlap.of(full, empty).dice == Overlap.of(empty, full).iou == 0.0
    assert cumulative_iou([Overlap.of(empty, empty)]) == 0.0
    with pytest.raises(ValueError, match="cannot be compared"):
        Overlap.of(empty, np.ones((3, 2), bool))


def test_accuracy_is_strict():
    assert accuracy_at([0.5, 0.51, 0.2, 1.0]) == 0.5


def test_against_the_authors_metrics(shared):
    """Their averages carry n / (n + 1e-5), their ratios 1e-5 to 1e-10 in the denominator."""
    from safetensors.numpy import load_file

    golden = json.loads((shared / "golden/losses.json").read_text())["metrics"]
    arrays = load_file(shared / "golden/losses.safetensors")
    for name, expected in golden.items():
        overlaps, ious = [], []
        for number in range(expected["n_images"]):
            key = f"metric.{name}.{number}."
            predicted, true = arrays[key + "logits"] > 0, arrays[key + "target_u8"] > 0
            overlaps += [Overlap.of(p, t) for p, t in zip(predicted, true, strict=True)]
            boxes = cxcywh_to_xyxy(arrays[key + "pred_cxcywh"], 1000, 1000)
            ious += list(np.diag(box_iou(boxes, arrays[key + "gt_xyxy"] * 1000)))
        assert len(overlaps) == expected["n_targets"]
        assert mean_iou(overlaps) == pytest.approx(expected["giou"], abs=2e-5)
        assert cumulative_iou(overlaps) == pytest.approx(expected["ciou"], abs=2e-5)
        dice = np.mean([overlap.dice for overlap in overlaps])
        assert dice == pytest.approx(expected["dice"], abs=2e-5)
        assert np.mean(ious) == pytest.approx(expected["bbox_iou"], abs=2e-5)
        assert accuracy_at(np.round(ious, 6)) == pytest.approx(expected["bbox_acc@0.5"], abs=2e-5)


def test_bootstrap_covers_the_mean_and_narrows():
    rng = np.random.default_rng(0)
    few, many = rng.random(20), rng.random(2000)
    small = bootstrap_interval(few, np.arange(20))
    large = bootstrap_interval(many, np.arange(2000))
    assert small.low <= small.value <= small.high and small.n == 20
    assert large.high - large.low < small.high - small.low
    assert bootstrap_interval(few, np.arange(20)) == small


def test_bootstrap_keeps_clusters_together():
    values = np.repeat([0.0, 1.0], 50)
    together = bootstrap_interval(values, np.repeat([0, 1], 50))
    apart = bootstrap_interval(values, np.arange(100))
    assert (together.low, together.high) == (0.0, 1.0)
    assert apart.high - apart.low < 0.3


def test_bootstrap_of_a_ratio():
    interval = bootstrap_interval([1, 3], ["a", "a"], denominators=[2, 6])
    assert interval.value == interval.low == interval.high == 0.5
    assert bootstrap_interval([0, 0], [0, 1], denominators=[0, 0]).value == 0.0
    with pytest.raises(ValueError, match="nothing"):
        bootstrap_interval([], [])


def test_refusal_rates():
    rates = refusal_rates([True, False, False, True], [True, True, False, False])
    assert (rates.n_acc, rates.t_acc, rates.mcc) == (0.5, 0.5, 0.0)
    perfect = refusal_rates([True, False], [True, False])
    assert (perfect.n_acc, perfect.t_acc, perfect.mcc) == (1.0, 1.0, 1.0)
    assert refusal_rates([False], [False]).n_acc is None


def test_calibration_error():
    assert expected_calibration_error([0.9] * 10, [True] * 9 + [False]) == pytest.approx(0.0)
    assert expected_calibration_error([1.0, 1.0], [False, False]) == 1.0
    assert expected_calibration_error([], []) == 0.0


def test_several_figures_share_their_resamples():
    rng = np.random.default_rng(1)
    tops, belows = rng.random((40, 3)), 1 + rng.random((40, 3))
    clusters = rng.integers(0, 12, 40)
    together = bootstrap_intervals(tops, clusters, belows)
    for column, interval in enumerate(together):
        alone = bootstrap_interval(tops[:, column], clusters, belows[:, column])
        for name in ("value", "low", "high", "n"):
            assert getattr(interval, name) == pytest.approx(getattr(alone, name))


def test_paired_difference_of_equal_and_of_different_systems():
    rng = np.random.default_rng(2)
    values, ones, images = rng.random(200), np.ones(200), np.repeat(np.arange(50), 4)
    same = paired_difference((values, ones), (values, ones), images)
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    better = paired_difference((values + 0.2, ones), (values, ones), images)
    assert better.value == pytest.approx(0.2) and better.p < 0.01 and better.low > 0
    noise = paired_difference((rng.permutation(values), ones), (values, ones), images)
    assert noise.p > 0.05 and noise.low < 0 < noise.high


def test_a_paired_difference_is_narrower_than_the_two_intervals():
    rng = np.random.default_rng(3)
    hard = rng.random(300)
    first, second, ones = hard + 0.02 * rng.random(300), hard, np.ones(300)
    difference = paired_difference((first, ones), (second, ones), np.arange(300))
    alone = bootstrap_interval(first, np.arange(300))
    assert difference.high - difference.low < 0.2 * (alone.high - alone.low)


def test_holm():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_risk_coverage():
    perfect = risk_coverage([0.9, 0.8, 0.2, 0.1], [True, True, False, False])
    assert perfect.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert perfect.risk.tolist() == pytest.approx([0, 0, 1 / 3, 0.5])
    reverse = risk_coverage([0.1, 0.2, 0.8, 0.9], [True, True, False, False])
    assert perfect.area < reverse.area
    tied = risk_coverage([0.5] * 4, [True, False, True, False])
    assert (tied.coverage.tolist(), tied.risk.tolist(), tied.area) == ([1.0], [0.5], 0.5)
    with pytest.raises(ValueError, match="nothing"):
        risk_coverage([], [])


def test_surface_dice():
    pytest.importorskip("scipy")
    square, empty = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    square[5:15, 5:15] = True
    moved = np.roll(square, 2, axis=0)
    assert surface_dice(square, square, 0) == 1.0
    assert surface_dice(empty, empty, 1) == 1.0 and surface_dice(square, empty, 1) == 0.0
    assert surface_dice(square, moved, 2) == 1.0 > surface_dice(square, moved, 1.9)
    assert surface_dice(square, moved, 1, spacing=(0.5, 9)) == 1.0
