"""The class table: one name for every class, and a side that never changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisee.data.importers.classes import body_part_of, load_classes
from medisee.entities import BODY_PARTS, load_entities

TABLE = load_classes()
SIDED = [
    name.removeprefix("left ")
    for name in TABLE._by_name
    if name.startswith("left ") and "right " + name.removeprefix("left ") in TABLE
]


@pytest.mark.parametrize(
    ("raw", "about", "label"),
    [
        ("Kidney_Left", "", "left kidney"),
        ("kidney (R)", "", "right kidney"),
        ("LeftKidney", "", "left kidney"),
        ("lung_upper_lobe_left", "", "upper lobe of left lung"),
        ("autochthon_right", "", "right deep back muscle"),
        ("rib_left_07", "", "left rib 7"),
        ("vertebrae_L4", "", "L4 vertebra"),
        ("heart_ventricle_left", "", "left ventricle of heart"),
        ("heart_myocardium", "", "myocardium of left ventricle"),
        ("Oesophagus", "", "esophagus"),
        ("clavicula_left", "", "left clavicle"),
        ("cancer", "lung", "lung tumor"),
        ("cancer", "liver", "malignant liver mass"),
        ("Anterior", "hippocampus", "anterior hippocampus"),
        ("enhancing tumour", "brain", "enhancing brain tumor"),
        ("nucleus", "cell", "cell nucleus"),
        ("nucleus", "", "nucleus"),
        ("my_odd class left", "", "left my odd class"),
    ],
)
def test_names_of_data_sets(raw, about, label):
    assert TABLE.label(raw, about) == label


@given(
    st.sampled_from(SIDED),
    st.sampled_from(["left", "right"]),
    st.sampled_from(
        ["{s} {n}", "{n} {s}", "{n}_{s}", "{S}-{N}", "{n} ({s})", "{n}, {i}", "{I}_{n}"]
    ),
)
def test_the_side_stays_however_it_is_written(name, side, form):
    raw = form.format(n=name, s=side, N=name.title(), S=side.title(), i=side[0], I=side[0].upper())
    assert TABLE.label(raw) == f"{side} {name}"


def test_both_sides_are_never_one():
    assert TABLE.label("left and right kidney") not in TABLE
    assert TABLE.label("kidney") == "kidney"


def test_entities_come_first_and_every_class_has_its_own_name():
    for name, entity in load_entities().items():
        assert TABLE.label(name) == name
        assert TABLE[name].side == (entity.side or "")
    for name in TABLE._by_name:
        assert TABLE.label(name) == name
        assert set(TABLE[name].body_parts) <= BODY_PARTS


def test_codes_find_their_class():
    assert TABLE.by_code("64033007", "left").name == "left kidney"
    assert TABLE.by_code("18639004", "left").name == "left kidney"
    assert TABLE.by_code("10200004").name == "liver"
    assert TABLE.by_code("90572001", "right").name == "lower lobe of right lung"
    assert TABLE.by_code("24915002", "right").name == "right rib 7"
    assert TABLE.by_code("0") is None


def test_labels_tell_the_body_part():
    assert body_part_of(["liver", "spleen", "left kidney", "aorta"], TABLE) == "abdomen"
    assert body_part_of(["left lung", "right lung", "aorta"], TABLE) == "chest"
    assert body_part_of(["no such class"], TABLE) == ""
