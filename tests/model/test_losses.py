"""Each loss against a few lines of plain arithmetic, and against the authors' own numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from medisee import boxes as numpy_boxes
from medisee.model.losses import (
    PAPER_WEIGHTS,
    box_losses,
    generalized_box_iou,
    heat_loss,
    mask_losses,
    similarity_losses,
    text_loss,
    to_corners,
    weighted_sum,
)

RANDOM = np.random.default_rng(3)


def test_text_loss_is_minus_the_mean_log_probability():
    logits = RANDOM.normal(size=(5, 7)) * 3
    targets = [1, 6, 0, 3, 3]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.mean([math.log(chances[row, target]) for row, target in enumerate(targets)])
    loss = text_loss(torch.tensor(logits), torch.tensor(targets))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_mask_losses_are_means_over_targets():
    logits = RANDOM.normal(size=(3, 4, 5)) * 4
    truth = RANDOM.random((3, 4, 5)) < 0.4
    chance = 1 / (1 + np.exp(-logits))
    bce = -(truth * np.log(chance) + ~truth * np.log(1 - chance)).mean(axis=(1, 2))
    overlap, total = (chance * truth).sum((1, 2)), chance.sum((1, 2)) + truth.sum((1, 2))
    dice = 1 - (2 * overlap / 1000 + 1e-6) / (total / 1000 + 1e-6)
    losses = mask_losses(torch.tensor(logits), torch.tensor(truth))
    assert losses.keys() == {"bce", "dice"}
    assert float(losses["bce"]) == pytest.approx(bce.mean(), rel=1e-5)
    assert float(losses["dice"]) == pytest.approx(dice.mean(), rel=1e-5)


def test_dice_of_an_empty_target_is_defined():
    empty = torch.zeros(1, 6, 6, dtype=torch.bool)
    assert float(mask_losses(torch.full((1, 6, 6), -100.0), empty)["dice"]) == 0
    assert float(mask_losses(torch.full((1, 6, 6), 100.0), empty)["dice"]) > 0.99


def plain_giou(a, b):
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    overlap = width * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    union = area - overlap
    return overlap / union - (hull - union) / hull


def test_heat_loss_by_plain_arithmetic():
    random = np.random.default_rng(3)
    heat = random.normal(size=(2, 3, 3)).astype(np.float32)
    shares = random.uniform(size=(2, 3, 3)).astype(np.float32)
    chance = 1 / (1 + np.exp(-heat))
    losses = []
    for p, s in zip(chance, shares, strict=True):
        covered = -(s * (s * np.log(p) + (1 - s) * np.log(1 - p))).sum() / s.sum()
        empty = -((1 - s) * (s * np.log(p) + (1 - s) * np.log(1 - p))).sum() / (1 - s).sum()
        losses.append((covered + empty) / 2 + 1 - 2 * (p * s).sum() / (p.sum() + s.sum()))
    found = heat_loss(torch.tensor(heat), torch.tensor(shares))
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-4)


def test_heat_loss_is_least_where_the_target_is():
    shares = torch.zeros(1, 4, 4)
    shares[0, 1, 2] = 1
    right, wrong = torch.full((1, 4, 4), -20.0), torch.full((1, 4, 4), -20.0)
    right[0, 1, 2], wrong[0, 2, 1] = 20, 20
    assert float(heat_loss(right, shares)) < 1e-3
    assert float(heat_loss(wrong, shares)) > 5
    assert torch.isfinite(heat_loss(right, torch.zeros(1, 4, 4)))


def test_box_losses():
    predicted = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.2, 0.3, 0.2, 0.2]])
    truth = torch.tensor([[0.6, 0.5, 0.4, 0.4], [0.7, 0.8, 0.2, 0.1]])
    corners = [(0.3, 0.4, 0.7, 0.6), (0.1, 0.2, 0.3, 0.4)]
    wanted = [(0.4, 0.3, 0.8, 0.7), (0.6, 0.75, 0.8, 0.85)]
    pairs = list(zip(corners, wanted, strict=True))
    l1 = np.mean([abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True)])
    giou = np.mean([1 - plain_giou(a, b) for a, b in pairs])
    losses = box_losses(predicted, truth)
    assert losses.keys() == {"l1", "giou"}
    assert float(losses["l1"]) == pytest.approx(l1, rel=1e-5)
    assert float(losses["giou"]) == pytest.approx(giou, rel=1e-5)


unit = st.floats(0, 1, width=32)
some_boxes = st.lists(st.tuples(unit, unit, unit, unit), min_size=1, max_size=4)


@settings(deadline=None)
@given(some_boxes, some_boxes)
def test_generalized_iou_equals_the_numpy_one(first, second):
    count = min(len(first), len(second))
    a = to_corners(torch.tensor(first[:count], dtype=torch.float64))
    b = to_corners(torch.tensor(second[:count], dtype=torch.float64))
    found = generalized_box_iou(a, b)
    assert (found >= -1 - 1e-6).all()
    assert (found <= 1 + 1e-6).all()
    area = min(float((x[:, 2:] - x[:, :2]).prod(1).min()) for x in (a, b))
    if area > 1e-6:
        expected = np.diagonal(numpy_boxes.generalized_box_iou(a.numpy(), b.numpy()))
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@settings(deadline=None)
@given(some_boxes, some_boxes)
def test_box_losses_and_their_gradients_are_always_finite(first, second):
    count = min(len(first), len(second))
    predicted = torch.tensor(first[:count], requires_grad=True)
    losses = box_losses(predicted, torch.tensor(second[:count]))
    (losses["l1"] + losses["giou"]).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert torch.isfinite(predicted.grad).all()


def test_similarity_losses():
    ours, reference = RANDOM.normal(size=(2, 6)), RANDOM.normal(size=(2, 6))
    p = np.exp(ours) / np.exp(ours).sum(1, keepdims=True)
    q = np.exp(reference) / np.exp(reference).sum(1, keepdims=True)
    m = (p + q) / 2
    js = ((p * np.log(p / m)).sum(1) + (q * np.log(q / m)).sum(1)) / 2
    losses = similarity_losses(torch.tensor(ours), torch.tensor(reference))
    assert losses.keys() == {"similarity_js", "similarity_mse"}
    assert float(losses["similarity_js"]) == pytest.approx(js.mean(), rel=1e-5)
    expected = ((ours - reference) ** 2).mean()
    assert float(losses["similarity_mse"]) == pytest.approx(expected, rel=1e-5)


def test_the_reference_map_takes_no_gradient():
    ours = torch.randn(2, 6, requires_grad=True)
    reference = torch.randn(2, 6, requires_grad=True)
    sum(similarity_losses(ours, reference).values()).backward()
    assert ours.grad.abs().sum() > 0
    assert reference.grad is None


def test_js_of_maps_far_apart_is_the_logarithm_of_two():
    ours, reference = torch.tensor([[200.0, 0.0]]), torch.tensor([[0.0, 200.0]])
    js = similarity_losses(ours, reference)["similarity_js"]
    assert float(js) == pytest.approx(math.log(2), rel=1e-6)


def test_weighted_sum_takes_the_papers_weights():
    terms = {name: torch.tensor(float(k + 1)) for k, name in enumerate(PAPER_WEIGHTS)}
    # text 1, bce 2, dice 0.5, l1 1, giou 1, JS 2, MSE 1 (sections 3.3 and 3.4)
    assert float(weighted_sum(terms, PAPER_WEIGHTS)) == 1 + 4 + 1.5 + 4 + 5 + 12 + 7


def test_a_term_without_weight_is_not_dropped_in_silence():
    with pytest.raises(KeyError, match="dice"):
        weighted_sum({"bce": torch.tensor(1.0), "dice": torch.tensor(1.0)}, {"bce": 1.0})


# ---- the authors' numbers ------------------------------------------------------------------------

MASK_CASES = [
    "random3", "empty_target", "full_target", "perfect", "perfect_empty",
    "all_negative_vs_target", "saturated_wrong", "num_masks_2x",
]  # fmt: skip
BOX_CASES = [
    "random5", "identical", "disjoint", "contained", "touching", "gt_degenerate_point",
    "pred_zero_w", "pred_outside_unit",
]  # fmt: skip
UNDEFINED_BOXES = ["both_degenerate_same_point", "both_degenerate_diff_points"]


@pytest.fixture(scope="module")
def golden(shared):
    figures = json.loads((shared / "golden/losses.json").read_text())
    return load_file(shared / "golden/losses.safetensors"), figures


@pytest.mark.parametrize("case", MASK_CASES)
def test_golden_masks(golden, case):
    tensors, figures = golden
    expected = figures["mask_losses"][case]
    logits = tensors[f"mask.{case}.logits"].requires_grad_()
    losses = mask_losses(logits, tensors[f"mask.{case}.target_u8"].bool())
    # The authors divide by a number of masks that is given apart; ours is the mean per target.
    share = len(logits) / expected["num_masks"]
    for name, value in losses.items():
        [gradient] = torch.autograd.grad(value * share, logits, retain_graph=True)
        assert float(value.detach()) * share == pytest.approx(expected[name], rel=2e-6, abs=2e-6)
        torch.testing.assert_close(
            gradient, tensors[f"mask.{case}.{name}_grad"], rtol=1e-4, atol=1e-7
        )


def cxcywh(corners):
    return torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)


@pytest.mark.parametrize("case", BOX_CASES)
def test_golden_boxes(golden, case):
    tensors, figures = golden
    expected = figures["box_losses"][case]
    predicted = tensors[f"box.{case}.pred_cxcywh"].requires_grad_()
    losses = box_losses(predicted, cxcywh(tensors[f"box.{case}.gt_xyxy"]))
    assert float(losses["l1"].detach()) == pytest.approx(expected["l1"], abs=1e-6)
    assert float(losses["giou"].detach()) == pytest.approx(expected["giou_loss"], abs=2e-6)
    if case in ("random5", "disjoint", "contained"):
        # Elsewhere edges coincide, and which side of a maximum's kink counts is no matter.
        (losses["l1"] + losses["giou"]).backward()
        wanted = tensors[f"box.{case}.grad_box_loss"]
        torch.testing.assert_close(predicted.grad, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", UNDEFINED_BOXES)
def test_where_the_authors_get_nan_ours_is_finite(golden, case):
    tensors, figures = golden
    assert figures["box_losses"][case]["giou_loss"] == "nan"
    predicted = tensors[f"box.{case}.pred_cxcywh"].requires_grad_()
    losses = box_losses(predicted, cxcywh(tensors[f"box.{case}.gt_xyxy"]))
    sum(losses.values()).backward()
    assert 1 <= float(losses["giou"].detach()) <= 2
    assert torch.isfinite(predicted.grad).all()


def test_one_inverted_box_does_not_silence_the_others(golden):
    """The authors' code drops the generalised IoU of the whole image there."""
    tensors, figures = golden
    case = "gt_inverted_one_of_three"
    predicted = tensors[f"box.{case}.pred_cxcywh"].requires_grad_()
    losses = box_losses(predicted, cxcywh(tensors[f"box.{case}.gt_xyxy"]))
    expected = figures["box_losses"][case]["l1"]
    assert float(losses["l1"].detach()) == pytest.approx(expected, abs=1e-6)
    losses["giou"].backward()
    corners = tensors[f"box.{case}.gt_xyxy"]
    upright = (corners[:, 2:] > corners[:, :2]).all(dim=1)
    assert upright.tolist().count(False) == 1
    assert predicted.grad[upright].abs().sum() > 0
