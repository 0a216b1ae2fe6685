"""Slices of NIfTI volumes: which plane, which slice, how they are shown."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest

from medisee.errors import InputError
from medisee.io import read_image
from medisee.structures import Orientation

RAS = np.diag([1.0, 1.0, 1.0, 1.0])
VOLUME = np.arange(8 * 9 * 10, dtype=np.int16).reshape(8, 9, 10)


def test_default_is_the_middle_axial_slice(nifti):
    image = read_image(nifti(VOLUME, RAS))
    assert np.array_equal(image.pixels, VOLUME[::-1, ::-1, 5].T)
    assert image.orientation == Orientation("R", "A")
    assert image.spacing == (1.0, 1.0)
    assert image.notes[0] == "axial: slice 5 of 10, counted from 0"
    assert np.array_equal(image.affine, RAS)
    assert image.modality is None


def test_default_plane_is_the_acquired_one(nifti):
    sagittal = read_image(nifti(VOLUME, np.diag([4.0, 1.0, 1.0, 1.0])))
    assert sagittal.orientation.plane == "sagittal"
    flat = read_image(nifti(VOLUME[:, :1], RAS))
    assert flat.orientation.plane == "coronal"
    assert flat.pixels.shape == (10, 8)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_versions_and_packing(nifti, tmp_path, second, pack):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(pack(nifti(VOLUME, RAS, second=second)))
    image = read_image(path, plane="coronal", slice=0)
    assert np.array_equal(image.pixels, VOLUME[::-1, 0, ::-1].T)
    assert image.source == "scan.nii.gz"


def test_big_endian_and_scaled(nifti):
    image = nibabel.Nifti1Image(VOLUME, RAS, nibabel.Nifti1Header(endianness=">"))
    image.header.set_slope_inter(2.0, -100.0)
    pixels = read_image(image.to_bytes()).pixels
    assert pixels.dtype.isnative
    assert np.allclose(pixels, VOLUME[::-1, ::-1, 5].T * 2.0 - 100)


def test_flat_file(nifti):
    image = read_image(nifti(VOLUME[:, :, 0], RAS))
    assert np.array_equal(image.pixels, VOLUME[::-1, ::-1, 0].T)
    assert read_image(nifti(VOLUME[:, :, 0], RAS), plane="coronal").pixels.shape == (1, 8)
    assert read_image(nifti(VOLUME[:, :, 0], RAS), plane="sagittal").pixels.shape == (1, 9)


def test_series(nifti):
    series = np.stack([VOLUME, VOLUME + 1], axis=3)
    assert np.array_equal(read_image(nifti(series, RAS)).pixels, VOLUME[::-1, ::-1, 5].T)
    second = read_image(nifti(series, RAS), frame=1)
    assert np.array_equal(second.pixels, VOLUME[::-1, ::-1, 5].T + 1)
    assert "frame 1 of 2, counted from 0" in second.notes


def test_units_are_turned_into_mm(nifti):
    image = nibabel.Nifti1Image(VOLUME, np.diag([0.001, 0.002, 0.003, 1]))
    image.header.set_xyzt_units("meter")
    assert read_image(image.to_bytes(), plane="axial").spacing == pytest.approx((2.0, 1.0))


def test_without_orientation_left_is_unknown(nifti):
    image = read_image(nifti(VOLUME))
    assert image.orientation is image.affine is None
    assert np.array_equal(image.pixels, VOLUME[:, ::-1, 5].T)
    assert any("left and right are unknown" in note for note in image.notes)
    with pytest.raises(InputError, match="states no orientation"):
        read_image(nifti(VOLUME), plane="axial")


def test_ct_values_get_the_soft_tissue_window(nifti):
    ct = np.full((8, 9, 10), -1000, np.int16)
    ct[2:6] = 40
    ct[4] = 1200
    image = read_image(nifti(ct, RAS))
    assert np.unique(image.display).tolist() == pytest.approx([0, 127.5, 255], abs=0.5)
    assert "soft-tissue" in image.notes[-1]
    bone = read_image(nifti(ct, RAS), window="bone")
    assert bone.display[0, 0, 0] == 0
    assert 0 < bone.display[5, 4, 0] < 128


def test_mr_values_are_stretched(nifti):
    rng = np.random.default_rng(0)
    image = read_image(nifti(rng.integers(0, 900, (30, 30, 3)).astype(np.int16), RAS))
    assert "contrast stretched" in image.notes[-1]
    assert image.display.max() == 255


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"slice": 10}, "slice 10 is not there; 0 to 9 are"),
        ({"slice": -1}, "slice -1 is not there"),
        ({"frame": 1}, "frame 1 is not there"),
        ({"plane": "oblique"}, "axial, coronal, sagittal"),
    ],
)
def test_choices_out_of_range(nifti, choice, message):
    with pytest.raises(InputError, match=message):
        read_image(nifti(VOLUME, RAS), **choice)


def test_voxels_must_be_plain_numbers(nifti):
    rgb = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(InputError, match="plain numbers"):
        read_image(nifti(rgb, RAS))
    with pytest.raises(InputError, match="plain numbers"):
        read_image(nifti(VOLUME.astype(np.complex64), RAS))


def test_five_dimensions_are_refused(nifti):
    with pytest.raises(InputError, match="2 to 4 dimensions"):
        read_image(nifti(np.zeros((2, 2, 2, 2, 2), np.int16), RAS))


def test_a_forged_size_is_refused_before_it_is_read(nifti):
    data = bytearray(nifti(VOLUME, RAS))
    data[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2").tobytes()
    with pytest.raises(InputError, match="larger than 4 GiB"):
        read_image(bytes(data))


def test_nothing_but_nan(nifti):
    with pytest.raises(InputError, match="number"):
        read_image(nifti(np.full((3, 3, 3), np.nan, np.float32), RAS))


def test_pair_and_other_gzip(nifti):
    data = bytearray(nifti(VOLUME, RAS))
    data[344:348] = b"ni1\0"
    with pytest.raises(InputError, match="convert it to one"):
        read_image(bytes(data))
    with pytest.raises(InputError, match="no NIfTI"):
        read_image(gzip.compress(b"\x89PNG\r\n\x1a\n" + b"x" * 600))
