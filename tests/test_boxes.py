"""Boxes against plain arithmetic on pixels, and their algebra."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisee.boxes import (
    box_iou,
    cxcywh_to_xyxy,
    generalized_box_iou,
    mask_to_box,
    xyxy_to_cxcywh,
)

SIDE = 12


@st.composite
def pixel_boxes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    x1, y1 = draw(st.integers(0, SIDE - 1)), draw(st.integers(0, SIDE - 1))
    return x1, y1, draw(st.integers(x1 + 1, SIDE)), draw(st.integers(y1 + 1, SIDE))


def filled(box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


@given(pixel_boxes(), pixel_boxes())
def test_iou_counts_pixels(a, b):
    union = filled(a) | filled(b)
    expected = (filled(a) & filled(b)).sum() / union.sum()
    assert box_iou([a], [b])[0, 0] == pytest.approx(expected)
    x1, y1, x2, y2 = mask_to_box(union)
    enclosing = (x2 - x1) * (y2 - y1)
    generalized = expected - (enclosing - union.sum()) / enclosing
    assert generalized_box_iou([a], [b])[0, 0] == pytest.approx(generalized)


@given(pixel_boxes())
def test_a_filled_box_comes_back(box):
    assert mask_to_box(filled(box)) == box
    assert box_iou([box], [box])[0, 0] == generalized_box_iou([box], [box])[0, 0] == 1


def test_far_boxes_have_a_negative_generalized_iou():
    # Two unit boxes at the ends of a 10 x 1 strip: union 2 of 10.
    value = generalized_box_iou([[0, 0, 1, 1]], [[9, 0, 10, 1]])
    assert value[0, 0] == pytest.approx(-0.8)


def test_pairwise_shapes_and_empty_boxes():
    assert box_iou(np.zeros((3, 4)), np.ones((2, 4))).shape == (3, 2)
    assert not box_iou(np.zeros((3, 4)), np.ones((2, 4))).any()
    assert generalized_box_iou([[2, 2, 2, 2]], [[2, 2, 2, 2]])[0, 0] == 0


coordinates = st.floats(-50, 500, allow_nan=False)


@given(
    st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), min_size=1),
    st.integers(1, 2000),
    st.integers(1, 2000),
)
def test_formats_are_inverse(boxes, height, width):
    back = cxcywh_to_xyxy(xyxy_to_cxcywh(boxes, height, width), height, width)
    assert np.allclose(back, boxes)


def test_cxcywh_is_relative_to_width_and_height():
    assert xyxy_to_cxcywh([10, 20, 30, 60], height=100, width=200).tolist() == [0.1, 0.4, 0.1, 0.4]


def test_empty_mask_has_no_box():
    assert mask_to_box(np.zeros((4, 5))) is None


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_mask_must_be_flat(shape):
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        mask_to_box(np.zeros(shape))


@pytest.mark.parametrize("boxes", [[1, 2, 3], 5.0])
def test_boxes_have_four_numbers(boxes):
    with pytest.raises(ValueError, match=r"\(\.\.\., 4\)"):
        xyxy_to_cxcywh(boxes, 1, 1)
