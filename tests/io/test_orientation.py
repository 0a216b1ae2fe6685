"""The left side stays left: all 48 ways to store a volume, and oblique ones."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisee.io import read_image
from medisee.io.orientation import RADIOLOGICAL, directions_of, from_dicom_cosines, to_display
from medisee.structures import Orientation

# A volume on a RAS+ grid (x to the right, y to the front, z to the head), each voxel another value.
VOLUME = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
SPACING = np.array([2.0, 2.5, 2.2])
STORED = list(product(permutations(range(3)), product((1, -1), repeat=3)))

EXPECTED = {
    # Rows from the front to the back, columns from the patient's right to the left.
    "axial": VOLUME[::-1, ::-1, 3].T,
    "coronal": VOLUME[::-1, 2, ::-1].T,
    # Columns from the front to the back.
    "sagittal": VOLUME[2, ::-1, ::-1].T,
}
MIDDLE = {"axial": (2, 3), "coronal": (1, 2), "sagittal": (0, 2)}  # world axis, index on it


def store(axes, signs):
    """The volume with its axes in another order and direction, and the affine that says so."""
    affine = np.eye(4)
    stored = VOLUME.transpose(axes)
    for new, (old, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[:3, new] = 0
        affine[old, new] = sign * SPACING[old]
        if sign < 0:
            stored = np.flip(stored, new)
            affine[old, 3] += SPACING[old] * (VOLUME.shape[old] - 1)
    return stored, affine


@pytest.mark.parametrize("plane", EXPECTED)
@pytest.mark.parametrize(("axes", "signs"), STORED)
def test_every_storage_order_shows_the_same_slice(nifti, plane, axes, signs):
    stored, affine = store(axes, signs)
    world, index = MIDDLE[plane]
    axis = axes.index(world)
    where = index if signs[axis] > 0 else VOLUME.shape[world] - 1 - index
    image = read_image(nifti(stored, affine), plane=plane, slice=where)
    assert np.array_equal(image.pixels, EXPECTED[plane])
    assert image.orientation == RADIOLOGICAL[plane]
    world_of = {"R": 0, "L": 0, "A": 1, "P": 1, "H": 2, "F": 2}
    expected = SPACING[world_of[image.orientation.top]], SPACING[world_of[image.orientation.left]]
    assert image.spacing == pytest.approx(expected)


def rotation(angles):
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return x @ y @ z


small_angles = st.tuples(*[st.floats(-0.35, 0.35)] * 3)  # to 20 degrees about each axis


@given(small_angles, st.sampled_from(STORED))
def test_oblique_volumes_go_to_the_nearest_axes(angles, order):
    _, affine = store(*order)
    turned = rotation(angles) @ affine[:3, :3]
    assert directions_of(turned) == directions_of(affine[:3, :3])


@given(st.tuples(*[st.floats(-3.2, 3.2)] * 3), st.floats(0.1, 9))
def test_any_rotation_gives_three_different_axes(angles, scale):
    letters = directions_of(rotation(angles) * scale)
    assert {frozenset("RL"), frozenset("AP"), frozenset("HF")} == {
        next(pair for pair in map(frozenset, ("RL", "AP", "HF")) if letter in pair)
        for letter in letters
    }


@pytest.mark.parametrize("axes", [np.zeros((3, 3)), np.full((3, 2), np.nan)])
def test_no_direction(axes):
    assert directions_of(axes) is None


@pytest.mark.parametrize(
    ("cosines", "expected"),
    [
        ([1, 0, 0, 0, 1, 0], Orientation("R", "A")),
        ([0, 1, 0, 0, 0, -1], Orientation("A", "H")),
        ([1, 0, 0, 0, 0, -1], Orientation("R", "H")),
        ([-1, 0, 0, 0, 1, 0], Orientation("L", "A")),
        ([1, 0, 0, 0, 0.9272, -0.3746], Orientation("R", "A")),  # tilted gantry
        ([0.654, 0.7565, 0, 0, 0, -1], Orientation("A", "H")),  # nearer to sagittal
        ([0, 0, 0, 0, 0, 0], None),
        ([1, 0, 0, 1, 0, 0], None),
    ],
)
def test_dicom_cosines(cosines, expected):
    assert from_dicom_cosines(cosines) == expected


@given(st.sampled_from(STORED))
def test_dicom_and_nifti_agree(order):
    """Rows and columns of any storage order, given as LPS+ cosines and as a RAS+ affine."""
    _, affine = store(*order)
    first, second = directions_of(affine[:3, :2])
    to_lps = np.array([-1, -1, 1]) / np.linalg.norm(affine[:3, :3], axis=0).mean()
    unit = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0) * np.sign(to_lps)[:, None]
    orientation = from_dicom_cosines([*unit[:, 1], *unit[:, 0]])
    assert (orientation.bottom, orientation.right) == (first, second)


@given(
    st.sampled_from(["axial", "coronal", "sagittal"]), st.booleans(), st.booleans(), st.booleans()
)
def test_to_display_undoes_turns(plane, transpose, flip_rows, flip_columns):
    wanted = RADIOLOGICAL[plane]
    pixels = np.arange(12).reshape(3, 4)
    down, right = wanted.bottom, wanted.right
    stored = pixels
    if flip_rows:
        stored, down = stored[::-1], wanted.top
    if flip_columns:
        stored, right = stored[:, ::-1], wanted.left
    if transpose:
        stored, down, right = stored.T, right, down
    assert np.array_equal(to_display(stored, down, right, wanted), pixels)
