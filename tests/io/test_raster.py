"""Pictures of every format, depth and mode; arrays and PIL images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ExifTags, Image

from medisee.errors import InputError
from medisee.io import read_image

GREY = (np.arange(6 * 8, dtype=np.uint8) * 5).reshape(6, 8)
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_lossless_formats_give_the_pixels_back(picture, kind, pixels):
    image = read_image(picture(Image.fromarray(pixels), kind))
    assert np.array_equal(image.pixels, pixels)
    assert np.array_equal(image.display[..., 0], pixels if pixels.ndim == 2 else pixels[..., 0])
    assert image.modality is image.spacing is image.orientation is None


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})]
)
def test_lossy_formats_come_close(picture, kind, options):
    smooth = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    image = read_image(picture(Image.fromarray(smooth), kind, **options))
    assert np.abs(image.display[..., 0].astype(int) - smooth).mean() < 3


def test_webp_lossless(picture):
    assert np.array_equal(
        read_image(picture(Image.fromarray(COLOUR), "WEBP", lossless=True)).pixels, COLOUR
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_uses_the_whole_display(picture, kind):
    deep = np.linspace(1000, 3000, 40 * 40).reshape(40, 40).astype(np.uint16)
    image = read_image(picture(Image.fromarray(deep), kind))
    assert image.pixels.dtype == np.uint16
    assert np.array_equal(image.pixels, deep)
    assert image.display.min() == 0
    assert image.display.max() == 255
    assert "contrast stretched" in image.notes[0]


def test_float_tiff(picture):
    values = np.linspace(-2.5, 7.5, 30 * 30, dtype=np.float32).reshape(30, 30)
    image = read_image(picture(Image.fromarray(values), "TIFF"))
    assert np.array_equal(image.pixels, values)
    assert image.display[0, 0, 0] == 0
    assert image.display[-1, -1, 0] == 255


def test_window_sets_the_display(picture):
    image = read_image(picture(Image.fromarray(GREY)), window=(100, 100))
    assert image.display[..., 0][GREY <= 50].max() == 0
    assert image.display[..., 0][GREY >= 150].min() == 255
    assert np.array_equal(image.pixels, GREY)


def test_palette_one_bit_and_cmyk(picture):
    palette = Image.fromarray(COLOUR).quantize(64)
    assert read_image(picture(palette)).pixels.shape == (6, 8, 3)
    assert set(np.unique(read_image(picture(Image.fromarray(GREY > 100))).pixels)) == {0, 255}
    assert read_image(picture(Image.fromarray(COLOUR).convert("CMYK"), "TIFF")).pixels.ndim == 3


def test_opaque_alpha_is_dropped_and_transparency_laid_on_black(picture):
    image = Image.fromarray(COLOUR).convert("RGBA")
    assert np.array_equal(read_image(picture(image)).pixels, COLOUR)
    image.putpixel((0, 0), (255, 255, 255, 0))
    seen = read_image(picture(image))
    assert seen.pixels[0, 0].tolist() == [0, 0, 0]
    assert "transparent parts laid on black" in seen.notes
    grey = read_image(picture(Image.fromarray(GREY).convert("LA")))
    assert np.array_equal(grey.pixels, GREY)


@pytest.mark.parametrize(
    ("tag", "turned"), [(1, GREY), (3, GREY[::-1, ::-1]), (6, GREY.T[:, ::-1])]
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation(picture, kind, tag, turned):
    image = Image.fromarray(GREY)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = tag
    assert np.array_equal(read_image(picture(image, kind, exif=exif)).pixels, turned)


def test_pages_of_a_tiff(picture):
    pages = [Image.fromarray(GREY + n) for n in range(3)]
    data = picture(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert np.array_equal(read_image(data).pixels, GREY)
    assert np.array_equal(read_image(data, frame=2).pixels, GREY + 2)
    assert read_image(data).notes == ("frame 0 of 3, counted from 0",)
    with pytest.raises(InputError, match="frame 3 is not there; 0 to 2 are"):
        read_image(data, frame=3)


def test_content_tells_the_format_not_the_suffix(picture, tmp_path):
    path = tmp_path / "scan.dcm"
    path.write_bytes(picture(Image.fromarray(GREY)))
    image = read_image(path)
    assert np.array_equal(image.pixels, GREY)
    assert image.source == "scan.dcm"


def test_pil_image_and_arrays():
    assert np.array_equal(read_image(Image.fromarray(COLOUR)).pixels, COLOUR)
    assert np.array_equal(read_image(COLOUR).display, COLOUR)
    assert np.array_equal(read_image(GREY[..., None]).pixels, GREY)
    assert np.array_equal(read_image(COLOUR / 255).display, COLOUR)
    assert np.array_equal(read_image(COLOUR.astype(np.uint16) * 257).display, COLOUR)
    assert read_image(GREY > 100).display.max() == 255
    big_endian = read_image(GREY.astype(">u2"))
    assert big_endian.pixels.dtype.isnative


def test_an_image_is_its_own_and_not_shared_with_the_array():
    array = GREY.copy()
    image = read_image(array)
    array[:] = 0
    assert np.array_equal(image.pixels, GREY)
    assert read_image(image) is image


def test_not_a_number_is_black():
    values = np.linspace(0, 1, 100).reshape(10, 10)
    values[0, 0], values[0, 1] = np.nan, np.inf
    display = read_image(values).display[..., 0]
    assert display[0, 0] == 0
    assert display[0, 1] == 255


def test_a_label_map_is_visible():
    labels = np.zeros((100, 100), np.uint16)
    labels[5, 5] = 3
    assert read_image(labels).display[5, 5, 0] == 255


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 5)), "shape"),
        (np.zeros((2, 3, 4, 3)), "shape"),
        (np.zeros(4), "shape"),
        (np.zeros((0, 4)), "empty"),
        (np.zeros((2, 2), complex), "numbers"),
        (np.array([["a"]]), "numbers"),
        (np.full((2, 2), np.nan), "number"),
        (np.full((2, 2, 3), 7.0), "colours"),
        (np.zeros((2, 2, 3), np.int16) - 1, "colours"),
    ],
)
def test_arrays_that_are_no_image(array, message):
    with pytest.raises(InputError, match=message):
        read_image(array)


@pytest.mark.parametrize("choice", [{"slice": 1}, {"plane": "axial"}])
def test_choices_without_room_are_refused(picture, choice):
    with pytest.raises(InputError, match="leave it out"):
        read_image(picture(Image.fromarray(GREY)), **choice)


def test_a_colour_picture_has_no_window(picture):
    with pytest.raises(InputError, match="window"):
        read_image(picture(Image.fromarray(COLOUR)), window="lung")


@pytest.mark.parametrize("window", ["fog", "1,2,3", "40,0", "nan,3", (1,), ("a", "b")])
def test_bad_windows(window):
    with pytest.raises(InputError, match="window"):
        read_image(GREY, window=window)
