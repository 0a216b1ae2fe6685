"""DICOM series with segmentations: coordinates decide where a mask lies, not the order stored."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage, generate_uid

from medisee.data.importers import ImportOptions, Selection, import_source
from medisee.data.sa_med2d import Index

SIZE, DEPTH = 40, 3
EVERYTHING = ImportOptions(
    selection=Selection(min_area=0, min_contrast=0, min_completeness=0), window=(100, 200)
)
NAMES = {1: "Left kidney", 2: "Right kidney", 3: "Spinal cord"}
CODES = {1: ("64033007", "7771000"), 2: ("64033007", "24028007"), 3: ("2748008", None)}
# Axial: rows and columns along the patient's x and y, in all eight ways.
X, Y = np.array([1, 0, 0]), np.array([0, 1, 0])
TURNS = [(a * s, b * t) for a, b in ((X, Y), (Y, X)) for s in (1, -1) for t in (1, -1)]


def truth(points):
    """Label of patient coordinates (..., 3) in LPS+ mm: left is where x grows, behind where y."""
    x, y, _ = np.moveaxis(points, -1, 0)
    label = np.zeros(x.shape, int)
    label[(abs(x - 12) < 5) & (abs(y) < 6)] = 1
    label[(abs(x + 12) < 5) & (abs(y) < 4)] = 2
    label[(abs(x) < 3) & (abs(y - 12) < 3)] = 3
    return label


def plane(turn, z):
    """Position of the first pixel, and the points (SIZE, SIZE, 3) of all of a slice at z mm."""
    along, down = turn
    origin = -(SIZE - 1) / 2 * (along + down) + np.array([0, 0, z])
    steps = np.arange(SIZE)
    return origin, origin + steps[None, :, None] * along + steps[:, None, None] * down


def base(sop_class, modality, study):
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Modality, data.StudyInstanceUID = modality, study
    data.PatientName, data.PatientID = "Secret^Person", "secret-id"
    data.Rows = data.Columns = SIZE
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.PixelRepresentation = 0
    return data


def cosines(turn):
    return [float(value) for axis in turn for value in axis]


def item(**elements):
    data = Dataset()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def write_series(root, turn, study="1.2.3"):
    """CT slices whose values tell the label: 50, 100 and 150 HU."""
    root.mkdir(parents=True, exist_ok=True)
    series, uids = generate_uid(), []
    for z in range(DEPTH):
        data = base(CTImageStorage, "CT", study)
        origin, points = plane(turn, z * 3.0)
        data.SeriesInstanceUID = series
        data.ImagePositionPatient, data.ImageOrientationPatient = list(origin), cosines(turn)
        data.PixelSpacing, data.RescaleSlope, data.RescaleIntercept = [1, 1], 1, -1000
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit = 15
        data.PixelData = (truth(points) * 50 + 1000).astype("<u2").tobytes()
        data["PixelData"].VR = "OW"
        pydicom.dcmwrite(root / f"{9 - z}.dcm", data, enforce_file_format=True)
        uids.append(data.SOPInstanceUID)
    return series, uids


def segment(number, label=None):
    code, side = CODES[number]
    kind = item(CodeValue=code, CodingSchemeDesignator="SCT", CodeMeaning="Structure")
    if side:
        kind.SegmentedPropertyTypeModifierCodeSequence = [
            item(CodeValue=side, CodingSchemeDesignator="SCT", CodeMeaning="Side")
        ]
    return item(
        SegmentNumber=number,
        SegmentLabel=label or NAMES[number],
        SegmentedPropertyTypeCodeSequence=[kind],
    )


def write_segmentation(path, series, turn, uids=None, shift=0.0, labels=None, study="1.2.3"):
    data, frames, groups = base(SegmentationStorage, "SEG", study), [], []
    data.SeriesInstanceUID, data.SegmentationType = generate_uid(), "BINARY"
    data.ReferencedSeriesSequence = [item(SeriesInstanceUID=series)]
    data.SegmentSequence = [segment(n, (labels or {}).get(n)) for n in NAMES]
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[1, 1])],
        PlaneOrientationSequence=[item(ImageOrientationPatient=cosines(turn))],
    )
    data.SharedFunctionalGroupsSequence = [shared]
    for number in NAMES:
        for z in range(DEPTH):
            origin, points = plane(turn, z * 3.0)
            frames.append(truth(points) == number)
            group = item(
                SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)],
                PlanePositionSequence=[item(ImagePositionPatient=list(origin + shift))],
            )
            if uids:
                source = item(ReferencedSOPInstanceUID=uids[z])
                group.DerivationImageSequence = [item(SourceImageSequence=[source])]
            groups.append(group)
    data.PerFrameFunctionalGroupsSequence, data.NumberOfFrames = groups, len(frames)
    data.BitsAllocated = data.BitsStored = 1
    data.HighBit = 0
    data.PixelData = np.packbits(np.stack(frames).ravel(), bitorder="little").tobytes()
    data["PixelData"].VR = "OB"
    pydicom.dcmwrite(path, data, enforce_file_format=True)


def write_label_map(path, series, turn, uids):
    """All segments in one frame a slice, as numbers."""
    data, frames, groups = base(SegmentationStorage, "SEG", "1.2.3"), [], []
    data.SeriesInstanceUID, data.SegmentationType = generate_uid(), "LABELMAP"
    data.ReferencedSeriesSequence = [item(SeriesInstanceUID=series)]
    data.SegmentSequence = [segment(n) for n in NAMES]
    for z in range(DEPTH):
        origin, points = plane(turn, z * 3.0)
        frames.append(truth(points))
        source = item(ReferencedSOPInstanceUID=uids[z])
        groups.append(
            item(
                PixelMeasuresSequence=[item(PixelSpacing=[1, 1])],
                PlaneOrientationSequence=[item(ImageOrientationPatient=cosines(turn))],
                PlanePositionSequence=[item(ImagePositionPatient=list(origin))],
                DerivationImageSequence=[item(SourceImageSequence=[source])],
            )
        )
    data.PerFrameFunctionalGroupsSequence, data.NumberOfFrames = groups, DEPTH
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit = 7
    data.PixelData = np.stack(frames).astype(np.uint8).tobytes()
    data["PixelData"].VR = "OB"
    pydicom.dcmwrite(path, data, enforce_file_format=True)


def centre(mask):
    return np.argwhere(mask).mean(axis=0)


def check_sides(out):
    data = Index.open(out)
    for record in data:
        assert (record.modality, record.plane) == ("CT", "axial")
        assert set(record.labels) == {"left kidney", "right kidney", "spinal cord"}
        masks = {label: data.load_mask(record, label) for label in record.labels}
        grey = data.load_image(record)[..., 0]
        assert centre(masks["right kidney"])[1] < centre(masks["left kidney"])[1]
        assert centre(masks["left kidney"])[0] < centre(masks["spinal cord"])[0]  # front is up
        means = [np.ptp(grey[mask]) for mask in masks.values()]
        assert means == [0, 0, 0]  # each mask lies on one brightness, its organ's
        assert np.median(grey[masks["left kidney"]]) < np.median(grey[masks["right kidney"]])


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(TURNS), st.sampled_from(TURNS), st.booleans())
def test_a_left_kidney_never_becomes_a_right_one(image_turn, mask_turn, named):
    with TemporaryDirectory() as folder:
        root = Path(folder) / "in"
        series, uids = write_series(root, image_turn)
        write_segmentation(root / "seg.dcm", series, mask_turn, uids if named else None)
        report = import_source(root, Path(folder) / "out", EVERYTHING)
        assert report.flaws == []
        assert report.images
        check_sides(Path(folder) / "out")


@pytest.mark.parametrize("turn", TURNS[::3])
def test_label_maps_hold_several_segments_in_a_frame(turn, tmp_path):
    series, uids = write_series(tmp_path / "in", TURNS[1])
    write_label_map(tmp_path / "in/seg.dcm", series, turn, uids)
    report = import_source(tmp_path / "in", tmp_path / "out", EVERYTHING)
    assert report.flaws == [] and report.images
    check_sides(tmp_path / "out")


@pytest.mark.parametrize("turn", [TURNS[0], TURNS[4]])
def test_oblong_pixels_become_square(turn, tmp_path):
    """Stored columns half as far apart as stated rows: the image must be stretched."""
    series, uids = write_series(tmp_path / "in", turn)
    for path in (tmp_path / "in").glob("*.dcm"):
        data = pydicom.dcmread(path)
        data.PixelSpacing = [2, 1]
        data.save_as(path)
    write_label_map(tmp_path / "in/seg.dcm", series, turn, uids)
    seg = pydicom.dcmread(tmp_path / "in/seg.dcm")
    for groups in seg.PerFrameFunctionalGroupsSequence:
        groups.PixelMeasuresSequence[0].PixelSpacing = [2, 1]
    seg.save_as(tmp_path / "in/seg.dcm")
    report = import_source(tmp_path / "in", tmp_path / "out", EVERYTHING)
    assert report.flaws == []
    for record in Index.open(tmp_path / "out"):
        image = Index.open(tmp_path / "out").load_image(record)
        mask = Index.open(tmp_path / "out").load_mask(record, "left kidney")
        rows_down = abs(turn[1][1]) == 1
        assert image.shape[:2] == ((2 * SIZE, SIZE) if rows_down else (SIZE, 2 * SIZE))
        assert mask.shape == image.shape[:2]


def test_nothing_tells_who_the_patient_is(tmp_path):
    series, uids = write_series(tmp_path / "in", TURNS[0])
    write_segmentation(tmp_path / "in/seg.dcm", series, TURNS[0], uids)
    import_source(tmp_path / "in", tmp_path / "out", EVERYTHING)
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(b"ecret" in path.read_bytes() for path in written)
    records = list(Index.open(tmp_path / "out"))
    assert {len(record.patient) for record in records} == {len("in/") + 12}


def test_what_does_not_fit_is_reported(tmp_path):
    root = tmp_path / "in"
    series, uids = write_series(root, TURNS[0])
    write_segmentation(root / "between.dcm", series, TURNS[0], uids, shift=0.4)
    write_segmentation(root / "lost.dcm", "9.9.9", TURNS[0])
    write_segmentation(root / "sides.dcm", series, TURNS[0], uids, labels={1: "Right kidney"})
    whole = (root / "sides.dcm").read_bytes()
    (root / "cut.dcm").write_bytes(whole[:700])
    (root / "cut2.dcm").write_bytes(whole[:-100])
    write_series(root / "alone", TURNS[0], "4.5.6")
    report = import_source(root, tmp_path / "out", EVERYTHING)
    by_file = {file.split("#")[0]: reason for file, reason, _ in report.flaws}
    assert "grid" in by_file["between.dcm"]
    assert "not there" in by_file["lost.dcm"]
    assert "left" in by_file["sides.dcm"]
    assert "cut2.dcm" in by_file
    assert "no segmentation" in next(r for f, r in by_file.items() if f.startswith("alone"))
    assert set(report.categories) == {"right kidney", "spinal cord"}


@pytest.mark.parametrize("keep", [140, 400])
def test_a_damaged_image_never_stops_the_import(tmp_path, keep):
    series, uids = write_series(tmp_path / "in", TURNS[0])
    write_segmentation(tmp_path / "in/seg.dcm", series, TURNS[0], uids)
    other = tmp_path / "in/more"
    series, uids = write_series(other, TURNS[0], "7.8.9")
    write_segmentation(other / "seg.dcm", series, TURNS[0], uids)
    path = tmp_path / "in/9.dcm"
    path.write_bytes(path.read_bytes()[:keep])
    report = import_source(tmp_path / "in", tmp_path / "out", EVERYTHING)
    assert report.images
    assert report.flaws
