"""What is no image, and what is damaged: one clear line, whatever the bytes are."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medisee.errors import InputError, MediSeeError
from medisee.io import read_image
from medisee.structures import MedicalImage

rng = np.random.default_rng(1)
PIXELS = rng.integers(0, 256, (24, 20), dtype=np.uint8)


def assert_one_clear_line(error: pytest.ExceptionInfo[MediSeeError]) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert 10 < len(text) < 300
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello, world", "not an image of a known format"),
        (b"GIF89a" + b"\0" * 50, "is a GIF"),
        (b"%PDF-1.7", "is a PDF"),
        (b"PK\x03\x04....", "ZIP"),
        (b"NRRD0004\n", "NRRD"),
        (b"<svg></svg>", "markup"),
        (b"\0\0\0\x1cftypheic", "HEIC"),
        (b"\x89PNG\r\n\x1a\n", "damaged or incomplete"),
        (b"\xff\xd8\xff", "damaged or incomplete"),
        (b"\x1f\x8b", "damaged or incomplete"),
        (b"\0" * 128 + b"DICM", "no pixels"),
    ],
)
def test_files_that_are_no_image(tmp_path, content, message):
    path = tmp_path / "thing.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_image(path)
    assert str(error.value).startswith("thing.png: ")
    assert_one_clear_line(error)


def test_paths_that_cannot_be_opened(tmp_path):
    for source, message in [
        (tmp_path / "absent.png", "No such file"),
        (tmp_path, "no DICOM image"),
        ("a\0b", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
        ("", "cannot be opened"),
    ]:
        with pytest.raises(InputError, match=message):
            read_image(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        read_image(tmp_path / "pipe")


@pytest.mark.parametrize("source", [None, 3, ["scan.png"], {}])
def test_things_that_are_no_source(source):
    with pytest.raises(InputError, match="an image is a path"):
        read_image(source)


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [10_500, 13_000, 60_000])
def test_decompression_bombs(side):
    with pytest.raises(InputError, match="million pixels that MediSee opens"):
        read_image(png_of_size(side, side))


def test_a_gzip_bomb_stops_at_the_header():
    with pytest.raises(InputError, match="not an image"):
        read_image(gzip.compress(b"\0" * 50_000_000))


def test_choices_with_an_image_that_was_read():
    image = read_image(PIXELS)
    with pytest.raises(InputError, match="read before"):
        read_image(image, frame=1)


@pytest.fixture(scope="module")
def files(request) -> dict[str, bytes]:
    import io

    import nibabel
    from pydicom.data import get_testdata_file

    def save(kind: str, **options) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(PIXELS).save(stream, kind, **options)
        return stream.getvalue()

    def sample(name: str) -> bytes:
        with open(get_testdata_file(name, download=False), "rb") as stream:
            return stream.read()

    volume = nibabel.Nifti1Image(rng.integers(0, 99, (6, 7, 8)).astype(np.int16), np.eye(4))
    return {
        "png": save("PNG"),
        "jpeg": save("JPEG"),
        "tiff": save("TIFF"),
        "tiff-lzw": save("TIFF", compression="tiff_lzw"),
        "bmp": save("BMP"),
        "webp": save("WEBP"),
        "nifti": volume.to_bytes(),
        "nifti-gz": gzip.compress(volume.to_bytes()),
        "dicom": sample("MR_small.dcm"),
        "dicom-rle": sample("SC_rgb_rle.dcm"),
        "dicom-jpeg": sample("SC_rgb_dcmtk_+eb+cr.dcm"),
        "dicom-deflated": sample("image_dfl.dcm"),
    }


KINDS = ["png", "jpeg", "tiff", "tiff-lzw", "bmp", "webp", "nifti", "nifti-gz", "dicom",
         "dicom-rle", "dicom-jpeg", "dicom-deflated"]  # fmt: skip
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def image_or_one_line(data: bytes) -> MedicalImage | None:
    """Read it; anything but a MediSeeError is a failure of the test."""
    try:
        image = read_image(data)
    except MediSeeError as error:
        assert "\n" not in str(error)
        return None
    assert image.display.shape == (image.height, image.width, 3)
    return image


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_read(files, kind):
    assert image_or_one_line(files[kind]) is not None


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(share=st.floats(0, 0.999))
def test_truncated_files(files, kind, share):
    data = files[kind]
    image_or_one_line(data[: int(share * len(data))])


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(
    changes=st.lists(st.tuples(st.floats(0, 0.9999), st.binary(min_size=1, max_size=6)), max_size=8)
)
def test_damaged_files(files, kind, changes):
    data = bytearray(files[kind])
    for place, junk in changes:
        start = int(place * len(data))
        data[start : start + len(junk)] = junk
    image_or_one_line(bytes(data))


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6))
def test_damaged_headers(files, kind, changes):
    data = bytearray(files[kind])
    for place, value in changes:
        data[min(place, len(data) - 1)] = value
    image_or_one_line(bytes(data))


signatures = st.sampled_from(
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        b"II*\0",
        b"MM\0*",
        b"BM",
        b"RIFF\x20\0\0\0WEBP",
        b"\x1f\x8b\x08\0",
        b"\0" * 128 + b"DICM",
        b"\x5c\x01\0\0" + b"\0" * 340 + b"n+1\0",
    ]
)


@settings(max_examples=300, deadline=None)
@given(signatures, st.binary(max_size=600))
def test_random_files(signature, junk):
    image_or_one_line(signature + junk)


def test_io_is_light():
    heavy = "('torch', 'pydicom', 'nibabel', 'pycocotools')"
    code = f"import medisee.io, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
