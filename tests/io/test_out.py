"""Results in the terms of their source: they lie where the target lies, left stays left."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import tempfile
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_series import HEIGHT, SECRETS, WIDTH, write_series
from hypothesis import given, settings
from hypothesis import strategies as st

from medisee.boxes import mask_diameters, mask_to_box
from medisee.errors import InputError
from medisee.io import open_volume, read_image
from medisee.io.nifti import encode_nifti
from medisee.io.segmentation import encode_seg
from medisee.io.volume import VolumeAnswer, VolumeFinding
from medisee.structures import Answer, Finding

highdicom = pytest.importorskip("highdicom", reason="needs the extra dicom")

SHAPE = (6, 7, 8)
ORDERS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def answer_about(image, mask, label="left kidney"):
    finding = Finding(mask, mask_to_box(mask), 0.8, label=label)
    return Answer("Where?", "It is there.", [finding], None, [], image, "nano")


def volume_answer(volume, masks):
    finding = VolumeFinding("left kidney", masks, dict.fromkeys(masks, 0.8))
    shown = answer_about(volume[min(masks)], masks[min(masks)])
    return VolumeAnswer([finding], None, [], volume, shown)


def on_the_left(image):
    """The half of an image that shows the patient's left."""
    mask = np.zeros((image.height, image.width), bool)
    half = {
        "left": np.s_[:, : image.width // 2],
        "right": np.s_[:, -(image.width // 2) :],
        "top": np.s_[: image.height // 2],
        "bottom": np.s_[-(image.height // 2) :],
    }
    mask[half[image.orientation.patient_left]] = True
    return mask


def centred_affine(order, signs, spacing=(0.7, 1.1, 2.3)):
    """Voxel axis i grows along world axis order[i], with the volume's middle at the origin."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign, mm) in enumerate(zip(order, signs, spacing, strict=True)):
        affine[world, axis] = sign * mm
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return affine


@pytest.mark.parametrize(("order", "signs"), ORDERS)
def test_left_stays_left_in_nifti_of_every_axis_order(tmp_path, order, signs):
    affine = centred_affine(order, signs)
    source = tmp_path / "scan.nii.gz"
    values = np.random.default_rng(0).integers(0, 99, SHAPE).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, affine), source)
    for plane in ("axial", "coronal"):
        image = read_image(source, plane=plane)
        place, path = image.reference, tmp_path / "mask.nii.gz"
        path.write_bytes(encode_nifti({place.index: on_the_left(image)}, place, image.affine))
        written = nibabel.load(path)
        voxels = np.argwhere(np.asarray(written.dataobj) == 1)
        world = nibabel.affines.apply_affine(affine, voxels)
        assert len(voxels) == on_the_left(image).sum()
        assert (world[:, 0] < 0).all()  # RAS+: left is where x is negative


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=9, max_size=9),
    st.lists(st.floats(-500, 500, width=32), min_size=3, max_size=3),
    st.sampled_from([(1, 0), (0, 1), (2, 4), (1, 1)]),
    st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]),
)
def test_the_affine_is_kept_bit_for_bit(matrix, origin, codes, kind):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3) * 3 + np.reshape(matrix, (3, 3))
    affine[:3, 3] = origin
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "scan.nii"
        image = kind(np.arange(336, dtype=np.int16).reshape(SHAPE), affine)
        image.set_sform(affine, code=codes[0])
        image.set_qform(affine, code=codes[1])
        image.header["descrip"] = b"Secret Person"
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"secret-id"))
        nibabel.save(image, source)
        read = read_image(source)
        path = Path(folder) / "mask.nii.gz"
        mask = np.ones((read.height, read.width), bool)
        path.write_bytes(encode_nifti({read.reference.index: mask}, read.reference, read.affine))
        written = nibabel.load(path)
        before = nibabel.load(source)
        assert written.affine.tobytes() == before.affine.tobytes()
        for name in ("qform_code", "sform_code", "srow_x", "quatern_b", "qoffset_x", "xyzt_units"):
            assert written.header[name].tobytes() == before.header[name].tobytes()
        assert b"ecret" not in written.to_bytes()


def test_nifti_of_big_endian_and_flat_files(tmp_path):
    header = nibabel.Nifti1Header(endianness=">")
    image = nibabel.Nifti1Image(np.arange(20, dtype=">i2").reshape(4, 5), np.eye(4), header)
    (tmp_path / "flat.nii").write_bytes(image.to_bytes())
    read = read_image(tmp_path / "flat.nii")
    answer_about(read, np.ones((read.height, read.width), bool)).save(tmp_path, formats=["nifti"])
    written = nibabel.load(tmp_path / "flat.1.mask.nii.gz")
    assert written.shape == (4, 5)
    assert np.asarray(written.dataobj).all()


def rotation(angles):
    x, y, z = angles
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rz = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return rz @ ry @ rx


def seg_points(segmentation):
    """LPS+ mm of all marked pixels, told from the SEG file alone."""
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    points = []
    frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    for frame, group in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):

        def find(name, group=group):
            return (group if name in group else shared)[name][0]

        position = np.array(find("PlanePositionSequence").ImagePositionPatient, float)
        cosines = np.array(find("PlaneOrientationSequence").ImageOrientationPatient, float)
        row_mm, column_mm = map(float, find("PixelMeasuresSequence").PixelSpacing)
        rows, columns = np.nonzero(frame)
        points.append(
            position
            + columns[:, None] * column_mm * cosines[:3]
            + rows[:, None] * row_mm * cosines[3:]
        )
    return np.concatenate(points)


def source_points(series, mask, place):
    """LPS+ mm of a mask's pixels on the slice of the series at `place` in its order."""
    headers = sorted(
        (pydicom.dcmread(path) for path in series.glob("*.dcm")), key=lambda h: -h.InstanceNumber
    )
    header = headers[place]
    cosines = np.array(header.ImageOrientationPatient, float)
    rows, columns = np.nonzero(mask)
    return (
        np.array(header.ImagePositionPatient, float)
        + columns[:, None] * float(header.PixelSpacing[1]) * cosines[:3]
        + rows[:, None] * float(header.PixelSpacing[0]) * cosines[3:]
    )


def blob(seed):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    top, left = np.random.default_rng(seed).integers(1, 12, 2)
    mask[top : top + 5, left : left + 9] = True
    mask[top, left] = False  # no symmetry that could hide a flip
    return mask


def sorted_rows(points):
    return points[np.lexsort(np.round(points, 3).T)]


@settings(max_examples=8, deadline=None)
@given(
    st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    st.tuples(st.floats(0.2, 3), st.floats(0.2, 3)),
    st.floats(0.5, 8),
)
def test_seg_and_nifti_of_a_series_lie_on_the_source(angles, spacing, step):
    spacing = tuple(round(mm, 4) for mm in spacing)
    with tempfile.TemporaryDirectory() as folder:
        root = write_series(Path(folder) / "ct", rotation(angles)[:2], spacing, round(step, 3))
        masks = {1: blob(1), 2: blob(2), 4: blob(3)}
        with open_volume(root) as volume:
            seg = pydicom.dcmread(BytesIO(encode_seg(volume_answer(volume, masks))))
            mask = Path(folder) / "mask.nii.gz"
            mask.write_bytes(encode_nifti(masks, volume.reference, volume.affine))
        truth = np.concatenate([source_points(root, mask, at) for at, mask in masks.items()])
        half = 0.5 * min(*spacing, step)
        found = seg_points(seg)
        assert np.abs(sorted_rows(found) - sorted_rows(truth)).max() < half
        written = nibabel.load(mask)
        voxels = np.argwhere(np.asarray(written.dataobj) == 1)
        world = nibabel.affines.apply_affine(written.affine, voxels) * [-1, -1, 1]
        assert np.abs(sorted_rows(world) - sorted_rows(truth)).max() < half


@pytest.fixture
def series(tmp_path):
    return write_series(tmp_path / "ct")


def test_seg_says_what_where_and_by_whom(series, tmp_path):
    path = sorted(series.glob("*.dcm"))[0]
    image = read_image(path)
    answer_about(image, blob(0)).save(tmp_path, stem="a", formats=["seg"])
    seg, source = pydicom.dcmread(tmp_path / "a.seg.dcm"), pydicom.dcmread(path)
    [segment] = seg.SegmentSequence
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("18639004", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert segment.SegmentLabel == "left kidney"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "MediSee"
    [referenced] = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    uids = [item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence]
    assert uids == [source.SOPInstanceUID]
    assert (seg.PatientID, seg.StudyInstanceUID) == ("secret-id", source.StudyInstanceUID)
    assert np.array_equal(seg.pixel_array.reshape(HEIGHT, WIDTH), blob(0))


def test_sr_measures_the_segments_and_explains(series, tmp_path):
    image = read_image(sorted(series.glob("*.dcm"))[0])
    answer_about(image, blob(0)).save(tmp_path, stem="a", formats=["sr"])
    seg, report = pydicom.dcmread(tmp_path / "a.seg.dcm"), tmp_path / "a.sr.dcm"
    content = highdicom.sr.srread(report).content
    [group] = content.get_planar_roi_measurement_groups()
    values = {m.name.meaning: m.value for m in group.get_measurements()}
    long, short = mask_diameters(blob(0), (1.5, 0.5))
    assert values == pytest.approx(
        {"Area": 44 * 0.75, "Long axis": long, "Short axis": short}, abs=0.01
    )
    assert group.tracking_uid == seg.SegmentSequence[0].TrackingUID
    written = report.read_bytes()
    assert b"It is there." in written
    assert seg.SOPInstanceUID.encode() in written


def test_sr_of_a_volume_states_its_volume(series, tmp_path):
    with open_volume(series) as volume:
        volume_answer(volume, {1: blob(0), 2: blob(0)}).save(tmp_path, stem="a", formats=["sr"])
    content = highdicom.sr.srread(tmp_path / "a.sr.dcm").content
    [group] = content.get_volumetric_roi_measurement_groups()
    values = {m.name.meaning: m.value for m in group.get_measurements()}
    assert values["Volume"] == pytest.approx(88 * 1.5 * 0.5 * 3)


@pytest.mark.parametrize("whole", [False, True])
def test_an_independent_validator_finds_no_error(series, tmp_path, whole):
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    if whole:
        with open_volume(series) as volume:
            volume_answer(volume, {0: blob(0), 3: blob(1)}).save(tmp_path, "a", formats=["sr"])
    else:
        image = read_image(sorted(series.glob("*.dcm"))[0])
        answer_about(image, blob(0)).save(tmp_path, "a", formats=["sr"])
    for kind in ("seg", "sr"):
        done = subprocess.run([tool, tmp_path / f"a.{kind}.dcm"], capture_output=True, text=True)
        lines = (done.stdout + done.stderr).splitlines()
        assert [line for line in lines if line.startswith("Error")] == []
        assert done.returncode == 0


@pytest.mark.parametrize("name", ["examples_ybr_color.dcm", "examples_palette.dcm", "MR_small.dcm"])
def test_seg_of_real_films_and_colours(tmp_path, name):
    path = pydicom.data.get_testdata_file(name, download=False)
    image = read_image(path)
    mask = np.zeros((image.height, image.width), bool)
    mask[3:9, 4:20] = True
    answer_about(image, mask).save(tmp_path, "a", formats=["sr"])
    seg = pydicom.dcmread(tmp_path / "a.seg.dcm")
    assert np.array_equal(seg.pixel_array.reshape(mask.shape), mask)
    frames = pydicom.dcmread(path).get("NumberOfFrames")
    if frames:
        derived = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
        assert derived.SourceImageSequence[0].ReferencedFrameNumber == image.reference.index + 1


def test_patient_details_reach_dicom_results_only(series, tmp_path):
    with open_volume(series) as volume:
        answer = volume_answer(volume, {1: blob(0)})
        written = answer.save(tmp_path, "a", formats=["nifti"])
        shown = f"{volume!r} {answer!r} {answer.shown!r} {volume.reference!r}"
    written += answer.shown.save(tmp_path, "b", formats=["nifti"])
    everything = shown.encode() + b"".join(path.read_bytes() for path in written)
    assert [word for word in SECRETS if word.encode() in everything] == []
    uid = pydicom.dcmread(next(series.glob("*.dcm"))).SOPInstanceUID
    assert uid.encode() not in everything
    assert not any(word in path.name for path in written for word in SECRETS)


def test_what_a_source_cannot_have_is_refused_and_nothing_written(tmp_path, series):
    picture = read_image(np.arange(48 * 64, dtype=np.uint8).reshape(48, 64))
    mask = np.ones((48, 64), bool)
    for formats, word in ((["seg"], "not a DICOM file"), (["nifti"], "NIfTI"), (["pdf"], "pdf")):
        with pytest.raises(InputError, match=word):
            answer_about(picture, mask).save(tmp_path / "out", formats=formats)
    assert not (tmp_path / "out").exists()


def test_a_source_that_changed_or_lacks_uids_is_refused(tmp_path, series):
    path = sorted(series.glob("*.dcm"))[0]
    image = read_image(path)
    changed = pydicom.dcmread(path)
    changed.SOPInstanceUID = "1.2.3"
    changed.save_as(path)
    with pytest.raises(InputError, match="changed"):
        answer_about(image, blob(0)).save(tmp_path / "out", formats=["seg"])
    bare = pydicom.dcmread(path)
    del bare.StudyInstanceUID
    bare.save_as(path)
    with pytest.raises(InputError, match="StudyInstanceUID"):
        answer_about(read_image(path), blob(0)).save(tmp_path / "out", formats=["seg"])
    path.unlink()
    with pytest.raises(InputError, match="cannot be opened"):
        answer_about(image, blob(0)).save(tmp_path / "out", formats=["seg"])
    assert not (tmp_path / "out").exists()


def test_odd_dates_and_names_do_not_stop_a_seg(tmp_path):
    root = write_series(
        tmp_path / "ct", depth=1, StudyDate="1997.04.24", StudyTime="14:04:38",
        SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg",
    )  # fmt: skip
    answer_about(read_image(next(root.glob("*.dcm"))), blob(0)).save(tmp_path, "a", formats=["sr"])
    seg = pydicom.dcmread(tmp_path / "a.seg.dcm")
    assert str(seg.PatientName) == "Müller^Jörg"
    assert (seg.StudyDate, seg.StudyTime) == ("19970424", "")


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (np.ones((4, 4), bool), (np.hypot(4, 8), np.hypot(4, 8) * np.sin(2 * np.arctan(0.5)))),
        (np.zeros((3, 3), bool), (0, 0)),
    ],
)
def test_diameters(mask, expected):
    long, short = mask_diameters(mask, (1.0, 2.0))
    assert long == pytest.approx(expected[0], rel=1e-3)
    assert short == pytest.approx(expected[1], rel=0.02)


def test_seg_of_an_enhanced_file_marks_the_right_frames(tmp_path):
    def item(**elements):
        data = pydicom.Dataset()
        for keyword, value in elements.items():
            setattr(data, keyword, value)
        return data

    order = (2, 0, 3, 1)  # frames are stored out of order
    path = next(write_series(tmp_path / "ct", depth=1).iterdir())
    data = pydicom.dcmread(path)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    data.NumberOfFrames = len(order)
    data.PixelData = b"".join(
        np.full((HEIGHT, WIDTH), place, np.int16).tobytes() for place in order
    )
    data.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=[1.5, 0.5], SliceThickness=3)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        )
    ]
    data.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=[-20, 15, 100 + 3 * place])])
        for place in order
    ]
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(data, name)
    data.save_as(path)
    with open_volume(path) as volume:
        seg = encode_seg(volume_answer(volume, {1: blob(0), 3: blob(1)}))
    points = seg_points(pydicom.dcmread(BytesIO(seg)))
    expected = np.concatenate(
        [
            np.stack(
                [-20 + 0.5 * columns, 15 + 1.5 * rows, np.full(len(rows), 100.0 + 3 * place)], 1
            )
            for place, (rows, columns) in ((1, np.nonzero(blob(0))), (3, np.nonzero(blob(1))))
        ]
    )
    assert np.allclose(sorted_rows(points), sorted_rows(expected))
