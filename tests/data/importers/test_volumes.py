"""Volumes to slices: left stays left and front is up however the files are stored."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt

from medisee.data.importers import ImportOptions, Selection, import_source
from medisee.data.importers.volumes import Grid, choose_slices, regions_of, upright
from medisee.data.sa_med2d import Index

EVERYTHING = Selection(min_area=0, min_contrast=0, min_completeness=0)
CLASSES = {"0": "background", "1": "kidney_left", "2": "kidney_right", "3": "spinal cord"}
CODES = [
    a + b + c
    for order in ("012", "021", "102", "120", "201", "210")
    for signs in range(8)
    for a, b, c in [[("RL", "AP", "SI")[int(axis)][signs >> n & 1] for n, axis in enumerate(order)]]
]


def phantom():
    """(R, A, H) values and labels: kidneys at both sides, the cord behind, a dot in front."""
    labels = np.zeros((40, 32, 24), np.uint8)
    labels[4:12, 10:18, 6:16] = 1
    labels[28:36, 10:18, 8:20] = 2
    labels[18:22, 2:6, :] = 3
    values = np.full(labels.shape, -1000, np.int16)
    values[2:38, 1:31] = 0
    values[labels > 0] = labels[labels > 0] * np.int16(50)
    values[16:24, 26:30] = 200
    return values, labels


def stored(array, codes="RAS", spacing=(1.0, 1.0, 1.0), tilt=0.0):
    """The phantom's array as a NIfTI image stored along the axes named, by nibabel itself."""
    affine = np.diag([*spacing, 1.0])
    cosine, sine = np.cos(tilt), np.sin(tilt)
    affine = (
        np.array([[cosine, -sine, 0, -30], [sine, cosine, 0, 7], [0, 0, 1, 5], [0, 0, 0, 1]])
        @ affine
    )
    image = nibabel.Nifti1Image(array, affine)
    return image.as_reoriented(
        nibabel.orientations.ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    )


def decathlon(root, volume, label_map, **document):
    for folder, image in (("imagesTr", volume), ("labelsTr", label_map)):
        (root / folder).mkdir(parents=True)
        nibabel.save(image, root / folder / "case_1.nii.gz")
    pair = {"image": "./imagesTr/case_1.nii.gz", "label": "./labelsTr/case_1.nii.gz"}
    base = {
        "name": "Kidneys",
        "modality": {"0": "CT"},
        "labels": CLASSES,
        "licence": "CC-BY-SA 4.0",
    }
    (root / "dataset.json").write_text(json.dumps({**base, "training": [pair], **document}))
    return root


def centre(mask):
    return np.argwhere(mask).mean(axis=0)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(CODES),
    st.sampled_from(CODES),
    st.tuples(*[st.sampled_from([0.7, 1.0, 2.5])] * 3),
    st.floats(-0.5, 0.5),
    st.sampled_from(["axial", "coronal"]),
)
def test_a_left_kidney_never_becomes_a_right_one(image_codes, label_codes, spacing, tilt, plane):
    values, labels = phantom()
    with TemporaryDirectory() as folder:
        root = decathlon(
            Path(folder) / "in",
            stored(values, image_codes, spacing, tilt),
            stored(labels, label_codes, spacing, tilt),
        )
        options = ImportOptions(plane=plane, selection=EVERYTHING, window=(100, 200))
        report = import_source(root, Path(folder) / "out", options)
        assert report.flaws == []
        data = Index.open(Path(folder) / "out")
        both = 0
        for record in data:
            assert record.plane == plane
            grey = data.load_image(record)[..., 0]
            if {"left kidney", "right kidney"} <= set(record.labels):
                both += 1
                left, right = (data.load_mask(record, f"{s} kidney") for s in ("left", "right"))
                assert centre(right)[1] < centre(left)[1]  # patient's right on the image's left
                # The mask lies on the kidney that has its brightness (50 and 100 HU).
                assert np.median(grey[left]) < 80 < 110 < np.median(grey[right])
            if plane == "axial" and "spinal cord" in record.labels:
                dot = grey == 255
                assert centre(dot)[0] < centre(data.load_mask(record, "spinal cord"))[0]
        assert both


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR"])
def test_pixels_come_out_square(tmp_path, codes):
    values, labels = phantom()
    volume, label_map = (stored(a, codes, (1, 1, 4)) for a in (values, labels))
    root = decathlon(tmp_path / "in", volume, label_map)
    import_source(root, tmp_path / "out", ImportOptions(plane="coronal", selection=EVERYTHING))
    data = Index.open(tmp_path / "out")
    shapes = {data.load_image(record).shape[:2] for record in data}
    assert shapes == {(24 * 4, 40)}
    cord = next(data.load_mask(r, "right kidney") for r in data if "right kidney" in r.labels)
    assert np.ptp(np.argwhere(cord), axis=0).tolist() == [12 * 4 - 1, 7]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CODES), st.floats(-0.6, 0.6), st.integers(0, 10**6))
def test_upright_keeps_every_voxel_at_its_place(codes, tilt, seed):
    array = np.random.default_rng(seed).integers(0, 99, (3, 4, 5)).astype(np.int16)
    image = stored(array, codes, (1, 2, 3), tilt)
    grid = upright(np.asarray(image.dataobj), image.affine)
    assert np.array_equal(grid.voxels, array)
    assert grid.fits(Grid(array, stored(array, "RAS", (1, 2, 3), tilt).affine))


def test_the_decathlons_facts_travel(tmp_path):
    values, labels = phantom()
    root = decathlon(tmp_path / "in", stored(values), stored(labels))
    report = import_source(root, tmp_path / "out", ImportOptions(selection=EVERYTHING))
    record = next(iter(Index.open(tmp_path / "out")))
    assert (record.modality, record.plane, record.patient) == ("CT", "axial", "in/case_1")
    assert record.licence == "CC-BY-SA 4.0"
    assert set(report.categories) == {"left kidney", "right kidney", "spinal cord"}


def test_a_class_name_is_read_in_the_light_of_its_data_set(tmp_path):
    values, labels = phantom()
    names = {"0": "background", "1": "cancer", "2": "lung_right", "3": "odd"}
    root = decathlon(tmp_path / "in", stored(values), stored(labels), labels=names, name="Lung")
    report = import_source(root, tmp_path / "out", ImportOptions(selection=EVERYTHING))
    assert set(report.categories) == {"lung tumor", "right lung", "odd"}
    assert report.uncurated == ["odd"]


def nnunet(root, values, labels):
    names = {"background": 0, "left kidney": 1, "right kidney": 2, "spinal cord": 3}
    facts = {"training": 1, "channel_names": {"0": "T2"}, "labels": names}
    decathlon(root, stored(values), stored(labels), **facts)
    (root / "imagesTr/case_1.nii.gz").rename(root / "imagesTr/case_1_0000.nii.gz")
    return root


def test_nnunets_folders(tmp_path):
    root = nnunet(tmp_path / "in", *phantom())
    report = import_source(root, tmp_path / "out", ImportOptions(selection=EVERYTHING))
    assert report.flaws == []
    record = next(iter(Index.open(tmp_path / "out")))
    assert (record.modality, record.patient) == ("MR-T2", "in/case_1")


def no_orientation(image):
    plain = nibabel.Nifti1Image(np.asarray(image.dataobj), None)
    plain.header["sform_code"] = plain.header["qform_code"] = 0
    return plain


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda v, m: (no_orientation(v), m), "no orientation"),
        (lambda v, m: (v, no_orientation(m)), "no orientation"),
        (lambda v, m: (v, nibabel.Nifti1Image(np.asarray(m.dataobj)[:-1], m.affine)), "grid"),
        (lambda v, m: (v, nibabel.Nifti1Image(np.asarray(m.dataobj), m.affine + 0.5)), "grid"),
        (lambda v, m: (v, nibabel.Nifti1Image(np.asarray(m.dataobj) * 0, m.affine)), "no"),
    ],
)
def test_a_bad_volume_is_reported(tmp_path, spoil, reason):
    values, labels = phantom()
    root = decathlon(tmp_path / "in", *spoil(stored(values), stored(labels)))
    report = import_source(root, tmp_path / "out", ImportOptions())
    ((file, text, what),) = report.flaws
    assert (file, what, report.images_found) == ("imagesTr/case_1.nii.gz", "image", 1)
    assert reason in text


@pytest.mark.parametrize("file", ["imagesTr/case_1.nii.gz", "labelsTr/case_1.nii.gz"])
@pytest.mark.parametrize("keep", [0, 10, 400, None])
def test_a_damaged_or_missing_file_is_reported(tmp_path, file, keep):
    root = decathlon(tmp_path / "in", *map(stored, phantom()))
    path = root / file
    path.unlink() if keep is None else path.write_bytes(path.read_bytes()[:keep])
    report = import_source(root, tmp_path / "out", ImportOptions())
    assert (report.images, len(report.flaws), report.images_found) == (0, 1, 1)


def test_an_unknown_value_is_reported_and_the_rest_imported(tmp_path):
    values, labels = phantom()
    labels[0, 0, 0] = 77
    root = decathlon(tmp_path / "in", stored(values), stored(labels))
    report = import_source(root, tmp_path / "out", ImportOptions(selection=EVERYTHING))
    assert report.images
    ((_, text, what),) = report.flaws
    assert "class id 77" in text
    assert what == "mask"


def totalsegmentator(root, codes="LPS"):
    values, labels = phantom()
    for subject in ("s0001", "s0002"):
        folder = root / subject / "segmentations"
        folder.mkdir(parents=True)
        nibabel.save(stored(values, codes), root / subject / "ct.nii.gz")
        for value, name in CLASSES.items():
            if value != "0":
                mask = (labels == int(value)).astype(np.uint8)
                file = name.replace(" ", "_") + ".nii.gz"
                nibabel.save(stored(mask, codes), folder / file)
        nibabel.save(stored(labels * 0, codes), folder / "spleen.nii.gz")
    (root / "s0002/segmentations/kidney_left.nii.gz").write_bytes(b"nonsense")
    with (root / "meta.csv").open("w", newline="") as out:
        csv.writer(out, delimiter=";").writerows([["image_id", "split"], ["s0001", "test"]])
    return root


def test_totalsegmentators_folders(tmp_path):
    root = totalsegmentator(tmp_path / "in")
    report = import_source(root, tmp_path / "out", ImportOptions(selection=EVERYTHING))
    ((file, _, what),) = report.flaws
    assert (file, what) == ("s0002/segmentations/kidney_left.nii.gz", "mask")
    by_patient = {record.patient: record for record in Index.open(tmp_path / "out")}
    assert set(by_patient) == {"in/s0001", "in/s0002"}
    assert by_patient["in/s0001"].split == "test"
    assert by_patient["in/s0001"].labels == ("left kidney", "right kidney", "spinal cord")
    assert "spleen" not in report.categories


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 50), min_size=12, max_size=12), min_size=1, max_size=6),
    st.integers(1, 12),
)
def test_slices_show_every_class_near_its_largest_area(rows, most):
    areas = np.array(rows)
    chosen = choose_slices(areas, most)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= most
    largest = areas.max(axis=1)
    if len(chosen) < most:
        shown = areas[:, chosen].max(axis=1, initial=0)
        assert (shown >= 0.75 * largest).all()


def test_regions_are_cut_to_their_voxels():
    _, labels = phantom()
    (region,) = regions_of(labels, {2: "right kidney", 9: "spleen"}, "file")
    assert (region.start, region.crop.shape) == ((28, 10, 8), (8, 8, 12))
    assert region.areas(2, 24).sum() == (labels == 2).sum()
    assert np.array_equal(region.slice(2, 10, labels.shape), labels[:, :, 10] == 2)
    assert region.slice(2, 2, labels.shape) is None
