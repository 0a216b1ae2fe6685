from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medisee.engine.clues import Shape, find_clues


def shape(x1, y1, x2, y2, size=100):
    mask = np.zeros((size, size), bool)
    mask[y1:y2, x1:x2] = True
    return Shape.of(mask)


def texts(label, shapes, plane="axial", body_part="abdomen"):
    return {clue.text for clue in find_clues(label, shapes, plane, body_part)}


def test_shape_of_a_mask():
    found = shape(10, 20, 30, 60)
    assert found.box == (10, 20, 30, 60)
    assert found.area == 20 * 40
    assert found.centre == (20.0, 40.0)
    assert Shape.of(np.zeros((5, 5), bool)) is None


def test_quadrants_and_middle():
    assert "in the upper left of the {m}" in texts("a", {"a": shape(5, 5, 30, 30)})
    assert "at the bottom right of the {m}" in texts("a", {"a": shape(70, 70, 90, 90)})
    assert "near the middle of the {m}" in texts("a", {"a": shape(45, 45, 55, 55)})
    assert "in the lower half of the {m}" in texts("a", {"a": shape(40, 70, 60, 90)})
    assert not texts("a", {"a": shape(0, 0, 100, 100)})


def test_sides_are_the_patients_and_need_the_plane():
    shapes = {"a": shape(10, 40, 30, 60), "b": shape(60, 40, 80, 60)}
    assert "on the patient's right of {b}" in texts("a", shapes)
    assert "on the patient's left of {a}" in texts("b", shapes)
    for plane, part in (
        ("sagittal", "lumbar spine"),
        ("short-axis", "heart"),
        ("", "breast"),
        ("axial", "brain (hippocampus region crop)"),
    ):
        assert not any("patient" in text for text in texts("a", shapes, plane, part))


def test_front_and_back_only_in_axial_images():
    shapes = {"a": shape(40, 10, 60, 30), "b": shape(40, 60, 60, 80)}
    assert {"in front of {b}", "above {b} in the {m}"} <= texts("a", shapes)
    assert "behind {a}" in texts("b", shapes)
    assert "in front of {b}" not in texts("a", shapes, plane="sagittal")


def test_sizes():
    shapes = {"a": shape(0, 0, 60, 60), "b": shape(70, 70, 80, 80), "c": shape(70, 0, 80, 20)}
    assert "clearly larger than {b} here" in texts("a", shapes)
    assert "larger than both {b} and {c} here" in texts("a", shapes)
    assert "clearly smaller than {a} here" in texts("c", shapes)


box = st.tuples(*[st.integers(0, 80)] * 2, *[st.integers(3, 20)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(box, box)
def test_relations_are_never_mutual(first, second):
    shapes = {"a": shape(*first), "b": shape(*second)}
    of_a = {text.replace("{b}", "{o}") for text in texts("a", shapes) if "{b}" in text}
    of_b = {text.replace("{a}", "{o}") for text in texts("b", shapes) if "{a}" in text}
    assert not of_a & of_b
