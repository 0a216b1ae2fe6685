"""DICOM volumes and what is hidden: enhanced files, times, places, ultrasound regions, windows."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from dicom_series import write_series
from pydicom.dataset import Dataset

from medisee.errors import InputError
from medisee.io import holds_volume, open_volume, read_image


def item(**elements):
    data = Dataset()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def enhanced(dicom, order=(2, 0, 3, 1)):
    """A multi-frame file whose frames are stored out of order; a frame's value tells its place."""
    pixels = np.stack([np.full((6, 8), 10 * place, np.uint16) for place in order])
    groups = [
        item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 2.5 * place])])
        for place in order
    ]
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[1, 2], SliceThickness=2.5)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    )
    return dicom(
        pixels, frames=len(order), Modality="MR", PerFrameFunctionalGroupsSequence=groups,
        SharedFunctionalGroupsSequence=[shared],
    )  # fmt: skip


def test_frames_of_an_enhanced_file_are_slices_in_the_order_of_their_places(dicom):
    data = enhanced(dicom)
    assert holds_volume(data)
    with open_volume(data) as volume:
        assert [int(image.pixels[0, 0]) for image in volume] == [0, 10, 20, 30]
        assert volume.reference.frames == (1, 3, 0, 2)
        assert volume.voxel_mm3 == pytest.approx(5)
        assert volume[0].spacing == (1, 2)
        assert volume.reference.volume({3: np.ones((6, 8))})[..., 3].all()
    one = read_image(data, slice=3)
    assert (int(one.pixels[0, 0]), one.reference.index) == (30, 3)


def test_a_film_without_places_is_no_volume(dicom):
    data = dicom(np.zeros((3, 6, 8), np.uint8), frames=3, Modality="US")
    assert not holds_volume(data)
    with pytest.raises(InputError, match="single image"), open_volume(data):
        pass
    with pytest.raises(InputError, match="no slice to choose"):
        read_image(data, slice=0)


def test_several_times_at_each_place_are_chosen_by_frame(tmp_path):
    for time in range(2):
        write_series(tmp_path / "all" / str(time), depth=3, SeriesInstanceUID="1.2.9")
    with open_volume(tmp_path / "all") as volume:
        assert len(volume) == 3
        assert volume.notes == ("frame 0 of 2, counted from 0",)
    with open_volume(tmp_path / "all", frame=1) as volume:
        assert volume.notes == ("frame 1 of 2, counted from 0",)
    next((tmp_path / "all" / "1").iterdir()).unlink()
    with pytest.raises(InputError, match="several images"), open_volume(tmp_path / "all"):
        pass


def test_without_places_the_numbers_decide_and_it_is_said(tmp_path):
    root = write_series(tmp_path / "ct")
    for path in root.iterdir():
        data = pydicom.dcmread(path)
        del data.ImagePositionPatient
        data.save_as(path)
    with open_volume(root) as volume:
        assert [int(image.pixels[0, 0]) for image in volume] == [40, 30, 20, 10, 0]
        assert "order of their numbers" in volume.notes[0]
        assert volume.affine is None


def test_a_missing_slice_makes_it_uneven_and_it_is_said(tmp_path):
    root = write_series(tmp_path / "ct", depth=6)
    next(p for p in root.iterdir() if pydicom.dcmread(p).InstanceNumber == 5).unlink()
    with open_volume(root) as volume:
        assert volume.affine is None
        assert "not evenly spaced" in volume.notes[-1]


def test_a_tilted_gantry_is_a_sheared_grid(tmp_path):
    root = write_series(tmp_path / "ct", depth=4)
    for path in root.iterdir():
        data = pydicom.dcmread(path)
        data.ImagePositionPatient[1] += 0.8 * (4 - data.InstanceNumber)
        data.save_as(path)
    with open_volume(root) as volume:
        assert np.allclose(volume.affine[:3, 2], [0, -0.8, 3])


def region(**elements):
    tissue = {"RegionSpatialFormat": 1, "RegionDataType": 1, "PhysicalUnitsXDirection": 3,
              "PhysicalUnitsYDirection": 3, "PhysicalDeltaX": 0.05, "PhysicalDeltaY": 0.04,
              "RegionLocationMinX0": 2, "RegionLocationMinY0": 1, "RegionLocationMaxX1": 5,
              "RegionLocationMaxY1": 4}  # fmt: skip
    return item(**{**tissue, **elements})


def test_ultrasound_regions_give_spacing_and_what_to_hide(dicom):
    pixels = np.full((6, 8), 200, np.uint8)
    data = dicom(pixels, Modality="US", SequenceOfUltrasoundRegions=[region()],
                 BurnedInAnnotation="YES")  # fmt: skip
    image = read_image(data)
    assert image.spacing == pytest.approx((0.4, 0.5))
    assert any("burned" in note for note in image.notes)
    hidden = read_image(data, hide=["annotations"])
    shown = hidden.display[..., 0] > 0
    assert shown[1:5, 2:6].all()
    assert shown.sum() == 16


def test_regions_that_disagree_give_no_spacing(dicom):
    regions = [region(), region(PhysicalDeltaX=0.1)]
    pixels = np.zeros((6, 8), np.uint8)
    assert read_image(dicom(pixels, SequenceOfUltrasoundRegions=regions)).spacing is None


def test_areas_are_hidden_in_any_image(dicom):
    pixels = np.full((6, 8), 200, np.uint8)
    for source in (pixels, dicom(pixels)):
        image = read_image(source, hide=["0,0,8,2", "6,5,100,100"])
        assert (image.display[:2] == 0).all()
        assert image.display[5, 7, 0] == 0
        assert image.display[5, 5, 0] == 200
        assert image.notes[-1] == "38% of the image was hidden"


@pytest.mark.parametrize(
    ("area", "word"),
    [("1,2,3", "X1,Y1,X2,Y2"), ("a,b,c,d", "X1,Y1,X2,Y2"), ("5,5,5,9", "left top"),
     ("annotations", "does not say where")],
)  # fmt: skip
def test_areas_that_are_none_are_refused(dicom, area, word):
    with pytest.raises(InputError, match=word):
        read_image(dicom(np.zeros((6, 8), np.uint8)), hide=[area])


@pytest.mark.parametrize(
    ("part", "note"),
    [("HEAD", "brain window centre 40, width 80"), ("WRIST", "bone window"),
     ("ABDOMEN", "soft-tissue window"), ("", "soft-tissue window")],
)  # fmt: skip
def test_a_ct_without_a_window_gets_that_of_its_body_part(dicom, part, note):
    data = dicom(np.zeros((6, 8), np.int16), Modality="CT", BodyPartExamined=part)
    assert note in read_image(data).notes[0]


def test_annotations_cannot_be_hidden_where_nothing_states_them():
    with pytest.raises(InputError, match="annotations"):
        read_image(np.zeros((6, 8), np.uint8), hide=["annotations"])
