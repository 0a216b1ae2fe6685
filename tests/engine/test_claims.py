from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medisee.data.sa_med2d import ImageRecord
from medisee.engine.claims import ClaimReader
from medisee.engine.clues import Shape, find_clues
from medisee.engine.splitting import LeakCheck
from medisee.entities import load_entities

LABELS = ("liver", "spleen", "aorta")


def shape(box, size=100):
    mask = np.zeros((size, size), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return Shape.of(mask)


def read(question, shapes, label="liver", plane="axial"):
    image = ImageRecord("a.png", (), plane=plane, body_part="abdomen")
    return list(ClaimReader(image, shapes, load_entities()).read(question, label))


SHAPES = {"liver": shape((5, 5, 45, 45)), "spleen": shape((70, 30, 90, 60))}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("in the upper left of the scan", True),
        ("in the lower left corner of this MR image", False),
        ("on the left-hand side of the screen", True),
        ("in the top third of the picture", True),
        ("near the middle of the slice", False),
        ("covering more than a tenth of the CT scan", True),
        ("covering more than a quarter of the CT scan", False),
        ("in front of the spleen", True),
        ("behind the spleen", False),
        ("above the spleen in the image", True),
        ("on the patient's right of the spleen", True),
        ("to the patient's left of the spleen", False),
        ("clearly larger than the spleen here", True),
        ("less than half as large as the spleen here", False),
        ("closer to the centre of the scan than the spleen", False),
    ],
)
def test_claims_are_read_and_tested(text, holds):
    (claim,) = read(f"Where is the bile factory, {text}?", SHAPES)
    assert claim.holds is holds


def test_sides_cannot_be_claimed_without_the_plane():
    (claim,) = read("on the patient's right of the spleen", SHAPES, plane="short-axis")
    assert not claim.holds and claim.side


def test_what_claims_nothing():
    assert not read("Which organ makes bile and lies under the ribs?", SHAPES)


box = st.tuples(*[st.integers(0, 70)] * 2, *[st.integers(3, 30)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(deadline=None, max_examples=60)
@given(box, box, box, st.sampled_from(["axial", "coronal", "sagittal", ""]))
def test_every_clue_is_confirmed_by_the_reader(first, second, third, plane):
    shapes = dict(zip(LABELS, map(shape, (first, second, third)), strict=True))
    for clue in find_clues("liver", shapes, plane, "abdomen"):
        text = clue.text.replace("{m}", "scan")
        for label in LABELS:
            text = text.replace("{" + label + "}", f"the {label}")
        claims = read(f"the bile factory, {text}.", shapes, plane=plane)
        assert claims and all(claim.holds for claim in claims), text


def test_a_horseshoe_does_not_lie_where_its_centre_is():
    mask = np.zeros((100, 100), bool)
    mask[20:80, 20:30] = mask[20:80, 70:80] = mask[20:30, 20:80] = True
    mask[:15, 40:60] = False
    found = {clue.text for clue in find_clues("liver", {"liver": Shape.of(mask)}, "", "abdomen")}
    assert "near the middle of the {m}" not in found or abs(Shape.of(mask).median[1] - 50) < 12


def test_like_images_are_candidates_only_across_splits():
    check = LeakCheck(("train", "val", "test"))
    check.add("train", "0a", 0xFFFF0000FFFF0000)
    check.add("train", "0a", 0xFFFF0000FFFF0001)
    check.add("val", "0b", 0xFFFF0000FFFF0003)
    check.add("test", None, 0x123456789ABCDEF0)
    assert check.candidates() == [(0, 2), (1, 2)]
    assert check.patients() == 0
    check.add("test", "0a", 1)
    assert check.patients() == 1
