"""Bad days: whatever a file holds, reading ends in an image or in one clear line, and soon."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from dicom_series import SECRETS, write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medisee.errors import InputError, MediSeeError
from medisee.io import Limits, holds_volume, open_volume, read_image

SMALL = Limits(pixels=1 << 20, frames=100, unpacked_bytes=1 << 24)


def seeds(dicom, nifti, picture):
    """A healthy small file of each kind."""
    pixels = np.arange(48, dtype=np.int16).reshape(6, 8)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("1.dcm", dicom(pixels, Modality="CT"))
    volume = nifti(np.zeros((4, 5, 6), np.int16), np.eye(4))
    return {
        "dicom": dicom(pixels, Modality="CT", RescaleSlope=2, RescaleIntercept=-9),
        "frames": dicom(np.zeros((3, 6, 8), np.uint8), frames=3),
        "nifti": volume,
        "gzip": gzip.compress(volume, mtime=0),
        "tiff": picture(Image.fromarray(np.zeros((6, 8), np.uint16)), "TIFF"),
        "png": picture(Image.new("RGB", (8, 6))),
        "zip": archive.getvalue(),
    }


def damaged(data: bytes, edits: list[tuple[float, int]], keep: float, tail: bytes) -> bytes:
    """The file with some bytes changed, its end cut off and something else put there."""
    changed = bytearray(data)
    for place, value in edits:
        changed[int(place * (len(changed) - 1))] = value
    return bytes(changed[: max(int(keep * len(changed)), 1)]) + tail


EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12)
KINDS = ("dicom", "frames", "nifti", "gzip", "tiff", "png", "zip")


def read_everything(data: bytes) -> None:
    """As an image and as a volume; anything but an InputError fails the test."""
    for door in (read_image, _first_slice):
        try:
            door(data, limits=SMALL)
        except MediSeeError as error:
            line = str(error)
            assert "\n" not in line
            assert len(line) < 400
            assert [word for word in SECRETS[:2] if word in line] == []


def _first_slice(data: bytes, limits: Limits) -> None:
    if holds_volume(data):
        with open_volume(data, limits=limits) as volume:
            volume[0]


def fuzz(kind, dicom, nifti, picture, edits, keep, tail):
    read_everything(damaged(seeds(dicom, nifti, picture)[kind], edits, keep, tail))


FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=FIXTURES)
@given(edits=EDITS, keep=st.floats(0, 1), tail=st.binary(max_size=40))
def test_damaged_files(kind, dicom, nifti, picture, edits, keep, tail):
    fuzz(kind, dicom, nifti, picture, edits, keep, tail)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=500, deadline=10_000, suppress_health_check=FIXTURES)
@given(edits=EDITS, keep=st.just(1.0) | st.floats(0, 1), tail=st.binary(max_size=40))
def test_damaged_files_for_long(kind, dicom, nifti, picture, edits, keep, tail):
    fuzz(kind, dicom, nifti, picture, edits, keep, tail)


def zip_of(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def test_an_archive_that_climbs_out_of_its_folder_writes_nothing(dicom, tmp_path, monkeypatch):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    content = dicom(np.zeros((6, 8), np.int16), Modality="CT")
    data = zip_of(("../../evil.dcm", content), ("/tmp/evil-medisee.dcm", content))
    assert read_image(data, series=0).pixels.shape == (6, 8)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not Path("/tmp/evil-medisee.dcm").exists()


def test_an_archive_that_unpacks_to_too_much_is_refused(dicom):
    data = zip_of(("1.dcm", bytes(SMALL.unpacked_bytes + 1)))
    assert len(data) < 100_000
    with pytest.raises(InputError, match="unpacks to more than 16 MiB"):
        read_image(data, limits=SMALL)


def test_a_gzip_that_unpacks_to_too_much_is_refused(nifti):
    bomb = gzip.compress(nifti(np.zeros((2, 2, 2), np.int16), np.eye(4)) + bytes(1 << 25))
    with pytest.raises(InputError, match="unpacks to more"), open_volume(bomb, limits=SMALL):
        pass


def test_an_archive_without_images_and_an_encrypted_one(dicom):
    with pytest.raises(InputError, match="no DICOM image"):
        read_image(zip_of(("a.txt", b"hello")))
    locked = bytearray(zip_of(("1.dcm", dicom(np.zeros((6, 8), np.int16)))))
    locked[6] |= 1  # the flag in the member's header, and in the directory at the end
    locked[locked.rindex(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(InputError, match="encrypted"):
        read_image(bytes(locked))


@pytest.mark.skipif(not hasattr(os, "symlink") or os.name == "nt", reason="needs symbolic links")
def test_links_to_folders_are_not_followed(tmp_path):
    root = write_series(tmp_path / "ct", depth=2)
    write_series(tmp_path / "elsewhere", depth=4)
    (root / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "loop").symlink_to(root, target_is_directory=True)
    with open_volume(root) as volume:
        assert len(volume) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_among_the_files_does_not_hang(tmp_path):
    root = write_series(tmp_path / "ct", depth=2)
    os.mkfifo(root / "pipe")
    with open_volume(root) as volume:
        assert len(volume) == 2
