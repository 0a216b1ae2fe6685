"""DICOM: values, windows, colours, frames, geometry; and that nobody learns who the patient is."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from medisee.errors import InputError
from medisee.io import read_image
from medisee.structures import Orientation

STORED = np.arange(6 * 8, dtype=np.uint16).reshape(6, 8) * 40


def sample(name: str):
    return get_testdata_file(name, download=False)


def test_rescaled_to_hounsfield_units_with_a_soft_tissue_window(dicom):
    image = read_image(dicom(STORED, Modality="CT", RescaleSlope=2, RescaleIntercept=-1024))
    assert np.array_equal(image.pixels, STORED * 2.0 - 1024)
    assert image.modality == "CT"
    assert image.notes == ("soft-tissue window centre 40, width 400",)
    expected = np.clip((image.pixels + 160) / 400 * 255, 0, 255)
    assert np.allclose(image.display[..., 0], expected, atol=0.51)


def test_the_files_window_fills_the_display(dicom):
    # Centre and width are in HU; pydicom windows into the stored range, display is 0..255.
    image = read_image(
        dicom(
            STORED,
            Modality="CT",
            RescaleSlope=1,
            RescaleIntercept=-500,
            WindowCenter=[100, 900],
            WindowWidth=[201, 10],
        )
    )
    display = image.display[..., 0].astype(float)
    # PS3.3 C.11.2.1.2.1: ((x - (c - 0.5)) / (w - 1) + 0.5), first of several windows
    expected = np.clip((image.pixels - 99.5) / 200 + 0.5, 0, 1) * 255
    assert np.allclose(display, expected, atol=0.51)
    assert image.notes == ("window of the file",)


def test_the_callers_window_wins(dicom):
    data = dicom(STORED, Modality="CT", WindowCenter=100, WindowWidth=200)
    image = read_image(data, window="1000,400")
    assert image.display[..., 0][STORED <= 800].max() == 0
    assert image.display[..., 0][STORED >= 1200].min() == 255


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_functions_rise_from_black_to_white(dicom, function):
    image = read_image(
        dicom(STORED, Modality="MR", WindowCenter=900, WindowWidth=300, VOILUTFunction=function)
    )
    row = image.display[..., 0].ravel().astype(int)
    assert (np.diff(row) >= 0).all()
    assert (row[0], row[-1]) == (0, 255)


@pytest.mark.parametrize(("centre", "width"), [(900, 0), (1e6, 10), ("", "")])
def test_a_window_that_shows_nothing_is_left_aside(dicom, centre, width):
    image = read_image(dicom(STORED, Modality="MR", WindowCenter=centre, WindowWidth=width))
    assert (image.display.min(), image.display.max()) == (0, 255)


def test_voi_lut_sequence(dicom):
    item = Dataset()
    item.LUTDescriptor = [256, 0, 8]
    item.add_new(0x00283006, "US", list(range(255, -1, -1)))
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = read_image(dicom(pixels, Modality="DX", VOILUTSequence=[item]))
    assert np.array_equal(image.display[..., 0], 255 - pixels)


def test_monochrome1_shows_low_values_white(dicom):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = read_image(dicom(pixels, PhotometricInterpretation="MONOCHROME1", Modality="CR"))
    assert np.array_equal(image.pixels, pixels)
    assert np.array_equal(image.display[..., 0], 255 - pixels)
    assert image.modality == "X-ray"


def test_padding_does_not_flatten_the_contrast(dicom):
    pixels = np.full((20, 20), -2000, np.int16)
    pixels[5:15, 5:15] = np.arange(100).reshape(10, 10)
    image = read_image(dicom(pixels, Modality="MR", PixelPaddingValue=-2000))
    assert np.ptp(image.display[5:15, 5:15].astype(int)) == 255


def test_colour(dicom):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert np.array_equal(read_image(dicom(rgb, Modality="XC")).display, rgb)
    deep = rgb.astype(np.uint16) * 257
    assert np.array_equal(read_image(dicom(deep)).display, rgb)
    with pytest.raises(InputError, match="window"):
        read_image(dicom(rgb), window="lung")


def test_ybr_becomes_rgb(dicom):
    grey_in_ybr = np.full((4, 4, 3), 128, np.uint8)
    grey_in_ybr[..., 0] = 90
    image = read_image(dicom(grey_in_ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(image.display.astype(int) - 90).max() <= 1


def test_palette(dicom):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    tables = {"Red": [0, 100, 200], "Green": [10, 20, 30], "Blue": [255, 0, 5]}
    elements = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, values in tables.items():
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        wide = np.array(values, "<u2") * 257
        elements[f"{colour}PaletteColorLookupTableData"] = wide.tobytes()
    image = read_image(dicom(indices, **elements))
    assert image.display[1, 0].tolist() == [200, 30, 5]


@pytest.mark.parametrize("photometric", ["CMYK", "HSV"])
def test_unknown_colours(dicom, photometric):
    with pytest.raises(InputError, match="cannot be shown"):
        read_image(dicom(STORED, PhotometricInterpretation=photometric))


def test_one_frame_of_many(dicom):
    stack = np.stack([STORED + n for n in range(5)])
    data = dicom(stack, frames=5, Modality="US")
    assert np.array_equal(read_image(data).pixels, STORED + 2)
    assert "frame 2 of 5, counted from 0" in read_image(data).notes
    assert np.array_equal(read_image(data, frame=4).pixels, STORED + 4)
    with pytest.raises(InputError, match="frame 5 is not there; 0 to 4 are"):
        read_image(data, frame=5)


def group(**elements):
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def test_functional_groups_of_enhanced_files(dicom):
    per_frame = [
        group(
            PixelValueTransformationSequence=[group(RescaleSlope=n + 1, RescaleIntercept=-n)],
            FrameVOILUTSequence=[group(WindowCenter=100, WindowWidth=200)],
        )
        for n in range(2)
    ]
    shared = group(
        PixelMeasuresSequence=[group(PixelSpacing=[0.7, 0.8])],
        PlaneOrientationSequence=[group(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])],
    )
    stack = np.stack([STORED, STORED])
    image = read_image(
        dicom(stack, frames=2, Modality="CT", SharedFunctionalGroupsSequence=[shared],
              PerFrameFunctionalGroupsSequence=per_frame),
        frame=1,
    )  # fmt: skip
    assert np.array_equal(image.pixels, STORED * 2.0 - 1)
    assert image.spacing == (0.7, 0.8)
    assert image.orientation == Orientation("A", "H")
    assert "window of the file" in image.notes


def test_spacing(dicom):
    assert read_image(dicom(STORED, PixelSpacing=[0.5, 0.25])).spacing == (0.5, 0.25)
    at_detector = read_image(dicom(STORED, ImagerPixelSpacing=[0.2, 0.2]))
    assert at_detector.spacing == (0.2, 0.2)
    assert any("detector" in note for note in at_detector.notes)
    assert read_image(dicom(STORED, PixelSpacing=[0, 0])).spacing is None
    assert read_image(dicom(STORED)).spacing is None


@pytest.mark.parametrize(
    ("letters", "expected"),
    [
        (["L", "F"], Orientation("R", "H")),
        (["AR", "FP"], Orientation("P", "H")),
        (["L", "R"], None),
        (["X", "F"], None),
        ("L", None),
        (None, None),
    ],
)
def test_orientation_by_letters(dicom, letters, expected):
    elements = {} if letters is None else {"PatientOrientation": letters}
    assert read_image(dicom(STORED, Modality="DX", **elements)).orientation == expected


@pytest.mark.parametrize(
    ("modality", "word"),
    [("MR", "MR"), ("US", "ultrasound"), ("MG", "mammography"), ("OT", None), ("", None)],
)
def test_modality_in_our_words(dicom, modality, word):
    assert read_image(dicom(STORED, Modality=modality)).modality == word


@pytest.mark.parametrize(
    ("modality", "what"), [("SEG", "a segmentation"), ("RTDOSE", "a dose map")]
)
def test_what_is_no_image(dicom, modality, what):
    with pytest.raises(InputError, match=f"is {what}, not an image"):
        read_image(dicom(STORED, Modality=modality))


def test_without_pixels(dicom):
    with pytest.raises(InputError, match="no pixels"):
        read_image(dicom(None, Modality="CT"))
    data = pydicom.dcmread(io.BytesIO(dicom(STORED)))
    del data.PixelData
    stream = io.BytesIO()
    data.save_as(stream)
    with pytest.raises(InputError, match="no pixels"):
        read_image(stream.getvalue())


def test_huge_sizes_are_refused_before_decoding(dicom):
    data = pydicom.dcmread(io.BytesIO(dicom(STORED)))
    data.Rows = data.Columns = 60000
    stream = io.BytesIO()
    data.save_as(stream)
    with pytest.raises(InputError, match="more than the 100 million pixels"):
        read_image(stream.getvalue())


def test_a_deflated_file(dicom):
    assert read_image(sample("image_dfl.dcm")).pixels.shape == (512, 512)


def test_a_deflated_file_in_colour_and_one_that_is_stored_otherwise_than_it_says():
    data = pydicom.dcmread(sample("SC_rgb_small_odd.dcm"))
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    deflated = io.BytesIO()
    pydicom.dcmwrite(deflated, data, enforce_file_format=True)
    plain = read_image(sample("SC_rgb_small_odd.dcm"))
    assert np.array_equal(read_image(deflated.getvalue()).display, plain.display)
    assert read_image(sample("SC_rgb_jpeg.dcm")).display.mean() > 230  # nearly white


def test_a_deflated_bomb(dicom, monkeypatch):
    monkeypatch.setattr("medisee.io.dicom._MAX_INFLATED_BYTES", 1000)
    with pytest.raises(InputError, match="unpacks to more"):
        read_image(sample("image_dfl.dcm"))


def test_only_the_frame_and_nothing_personal_is_kept(dicom):
    image = read_image(dicom(STORED, Modality="CT", PatientBirthDate="19000101"))
    assert "ecret" not in repr(image)
    assert "1900" not in repr(image)


def test_warnings_of_the_parser_are_not_passed_on(dicom):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("J2K_pixelrep_mismatch.dcm", "examples_overlay.dcm"):
            read_image(sample(name))


@pytest.mark.parametrize(
    "name", ["MR_small_bigendian.dcm", "MR_small_RLE.dcm", "MR_small_implicit.dcm"]
)
def test_transfer_syntaxes_agree(name):
    plain = read_image(sample("MR_small.dcm"))
    other = read_image(sample(name))
    assert np.array_equal(other.pixels, plain.pixels)
    assert np.array_equal(other.display, plain.display)
    assert other.pixels.dtype.isnative


def test_compression_that_nothing_here_decodes(monkeypatch):
    with pytest.raises(InputError, match="JPEG Extended"):
        read_image(sample("JPEG-lossy.dcm"))


def test_dicom_without_its_header(tmp_path):
    path = tmp_path / "old.dcm"
    path.write_bytes(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + b"\0" * 600)
    with pytest.raises(InputError, match="without its header"):
        read_image(path)


def test_plane_and_slice_are_for_volumes(dicom):
    with pytest.raises(InputError, match="has no plane"):
        read_image(dicom(STORED), plane="axial")
