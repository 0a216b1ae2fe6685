"""The parts that tasks are made of: category states, nearest category, jitter, overlaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medisee.boxes import box_iou, cxcywh_to_xyxy
from medisee.categories import Categories
from medisee.training.context import fixed_categories
from medisee.training.language import category_scores, scene_loss, state_losses
from medisee.training.targets import jitter, paired_iou
from medisee.training.tasks import dice

LABELS = [f"label {number}" for number in range(40)]


@pytest.fixture(scope="module")
def states():
    return torch.from_numpy(fixed_categories(LABELS, 2, 64, seed=7).states)


def test_category_states_follow_from_the_seed(states):
    assert states.shape == (40, 2, 64)
    assert np.array_equal(states, fixed_categories(LABELS, 2, 64, seed=7).states)
    assert not np.array_equal(states, fixed_categories(LABELS, 2, 64, seed=8).states)


def test_category_states_share_a_part_and_have_one_of_their_own(states):
    common = states.mean(dim=0)
    assert common.square().mean().sqrt() == pytest.approx(1, abs=0.15)
    own = states - common
    assert own.square().mean().sqrt() == pytest.approx(1, abs=0.05)
    directions = torch.nn.functional.normalize(own.flatten(1), dim=1)
    cosines = directions @ directions.T - torch.eye(40)
    assert cosines.abs().max() < 0.5


def test_the_nearest_category_is_found_through_noise(states):
    emitted = states[[3, 17, 17, 0]]
    noisy = emitted + torch.randn(emitted.shape, generator=torch.Generator().manual_seed(0))
    assert category_scores(noisy, states).argmax(dim=1).tolist() == [3, 17, 17, 0]
    named = Categories(LABELS, states.numpy()).nearest(noisy.numpy())
    assert named == [LABELS[k] for k in (3, 17, 17, 0)]


def test_a_categorys_state_follows_from_its_name_alone(states):
    fewer = fixed_categories(LABELS[5:9], 2, 64, seed=7)
    assert np.array_equal(fewer.states, states[5:9])
    assert fewer.read is None


def test_categories_that_a_model_knows_keep_their_states(states):
    drawn = np.random.default_rng(0).standard_normal((2, 3, 2, 64)).astype(np.float32)
    known = Categories(LABELS[:3], *drawn)
    both = fixed_categories(["new", *LABELS[1:3]], 2, 64, 7, known)
    assert np.array_equal(both.states[1:], known.states[1:])
    assert both.read is not None
    assert np.array_equal(both.read[1:], drawn[1][1:])
    assert np.array_equal(both.read[0], both.states[0])
    own = both.states[0] - known.common[0]
    assert own.std() == pytest.approx(1, rel=0.2)


def test_state_losses_are_least_at_the_right_category(states):
    labels = torch.tensor([3, 17])
    right = state_losses(states[labels], labels, states)
    wrong = state_losses(states[[4, 5]], labels, states)
    assert float(right["state"]) == 0
    assert float(wrong["state"]) == pytest.approx(2, rel=0.3)
    assert float(right["category"]) < 0.01
    assert float(wrong["category"]) > 5


def test_scene_loss_is_the_mean_cross_entropy_of_what_is_in_view(states):
    own = torch.nn.functional.normalize((states - states.mean(0))[:, -1], dim=1)
    image_states = torch.stack([own[3] + own[8], own[5]])[:, None].repeat(1, 7, 1)
    present = [[3, 8], [5]]
    scores = torch.nn.functional.normalize(image_states.mean(1), dim=1) @ own.T / 0.07
    chances = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
    expected = -((chances[0, 3].log() + chances[0, 8].log()) / 2 + chances[1, 5].log()) / 2
    found = scene_loss(image_states, present, states)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    assert float(found) < float(scene_loss(image_states, [[9, 10], [11]], states)) - 3


def test_jitter_stays_near_its_box():
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4]]).repeat(500, 1)
    moved = jitter(boxes, np.random.default_rng(0))
    assert not torch.equal(moved, boxes)
    assert (moved[:, 2:] >= boxes[:, 2:]).all()
    assert (moved - boxes).abs().mean() < 0.03
    assert paired_iou(moved, boxes).mean() > 0.75
    assert torch.equal(moved, jitter(boxes, np.random.default_rng(0)))


side = st.floats(0.05, 1)
box = st.tuples(st.floats(0, 1), st.floats(0, 1), side, side)


@settings(deadline=None)
@given(box, box)
def test_paired_iou_equals_the_numpy_one(first, second):
    found = paired_iou(torch.tensor([first]), torch.tensor([second]))
    corners = [cxcywh_to_xyxy(np.array([b]), 1, 1) for b in (first, second)]
    assert float(found[0]) == pytest.approx(float(box_iou(*corners)[0, 0]), abs=1e-5)


def test_dice():
    a, b = torch.tensor([True, True, False]), torch.tensor([False, True, True])
    assert dice(a, b) == pytest.approx(0.5)
    assert dice(a, a) == 1
    assert dice(a, ~a) == 0
    assert dice(a & ~a, b & ~b) == 1
