from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisee.engine import language


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("the pancreas", False),
        ("dental caries", False),
        ("the bronchi", True),
        ("the left kidney", False),
        ("the tiny red dots in the eye", True),
        ("the chamber whose valves leak", False),
        ("the place blood goes to", False),
        ("the irregular, crowded glands", True),
        ("the hole, not the rings", False),
        ("the vessels seen in the eye", True),
        ("the bone two blocks above the sacrum", False),
        ("the two filters of the blood", True),
        ("the STS", False),
        ("both lungs", True),
    ],
)
def test_number(phrase, expected):
    assert language.is_plural(phrase) is expected


def test_articles():
    assert language.with_article("liver") == "the liver"
    assert language.with_article("L4") == "L4"
    assert language.with_article("left rib 9") == "left rib 9"
    assert language.with_article("L4 vertebral body") == "the L4 vertebral body"
    assert language.with_indefinite("MRI") == "an MRI"
    assert language.with_indefinite("ultrasound") == "an ultrasound"
    assert language.with_indefinite("CT scan") == "a CT scan"
    assert language.with_indefinite("X-ray") == "an X-ray"


def test_spoken_names():
    assert language.spoken("lower lobe of left lung") == "lower lobe of the left lung"
    assert language.spoken("left ventricle of heart") == "left ventricle of the heart"
    assert language.spoken("barrett's esophagus") == "Barrett's esophagus"


def test_plurals():
    assert language.plural("kidney") == "kidneys"
    assert language.plural("caudate nucleus") == "caudate nuclei"
    assert language.plural("putamen") is None
    assert language.plural("rib 9") is None


def test_join():
    assert language.join(["a"]) == "a"
    assert language.join(["a", "b", "c"]) == "a, b and c"


@given(st.text(min_size=1, max_size=60), st.integers(0, 500))
def test_casual_typing_leaves_something(text, seed):
    assert language.casual(text, random.Random(seed))
