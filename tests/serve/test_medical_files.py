"""Downloads in the terms of the image's file: NIfTI, DICOM-SEG and SR."""

from __future__ import annotations

import gzip
import io
import zipfile

import nibabel
import pydicom
import pytest
from dicom_series import write_series

QUESTION = "Where is the liver?"


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A ZIP archive of a CT series."""
    root = write_series(tmp_path_factory.mktemp("series") / "ct")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(root.iterdir()):
            archive.write(path, path.name)
    return packed.getvalue()


def test_results_come_in_the_terms_of_a_dicom_source(client, series):
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    opened = client.post("/v1/sessions", files={"image": series}, data={"slice": 2}).json()
    assert opened["image"]["formats"] == {"nifti": None, "seg": None, "sr": None}
    path = f"/v1/sessions/{opened['id']}"
    answer = client.post(f"{path}/ask", json={"question": QUESTION}).json()
    seg = client.get(f"{path}/files/seg.dcm")
    assert seg.headers["content-type"] == "application/dicom"
    segments = pydicom.dcmread(io.BytesIO(seg.content))
    assert segments.pixel_array.sum() == answer["findings"][0]["area_px"]
    report = client.get(f"{path}/files/report.zip")
    with zipfile.ZipFile(io.BytesIO(report.content)) as archive:
        read = {
            name: pydicom.dcmread(io.BytesIO(archive.read(name))) for name in archive.namelist()
        }
    assert set(read) == {"seg.dcm", "sr.dcm"}
    referred = str(read["sr.dcm"])
    assert read["seg.dcm"].SOPInstanceUID in referred
    mask = nibabel.Nifti1Image.from_bytes(
        gzip.decompress(client.get(f"{path}/files/mask-1.nii.gz").content)
    )
    assert mask.get_fdata().sum() == answer["findings"][0]["area_px"]
    assert mask.shape[2] == opened["image"]["slices"]


def test_results_of_a_picture_say_why_they_are_not_medical_files(client, session):
    client.post(f"{session}/ask", json={"question": QUESTION})
    formats = client.get(session).json()["image"]["formats"]
    assert set(formats) == {"nifti", "seg", "sr"}
    for name in ("seg.dcm", "report.zip", "mask-1.nii.gz"):
        done = client.get(f"{session}/files/{name}")
        assert done.status_code == 404
        message = done.json()["error"]["message"]
        assert message in {f"the image {reason}" for reason in formats.values()}
    for name in ("mask-9.png", "mask.png", "answer-1.json", "nothing.png", "overlay.zip"):
        assert client.get(f"{session}/files/{name}").json()["error"]["code"] == "no_file"


def test_a_refusal_has_no_medical_file(client, series):
    opened = client.post("/v1/sessions", files={"image": series}, data={"slice": 2}).json()
    path = f"/v1/sessions/{opened['id']}"
    client.post(f"{path}/ask", json={"question": "Is the absent one here?"})
    done = client.get(f"{path}/files/seg.dcm")
    assert (done.status_code, done.json()["error"]["code"]) == (404, "no_file")


def test_a_session_counts_the_file_that_it_came_from(client, series, session):
    store = client.app.state.service.store
    before = store.bytes
    client.post("/v1/sessions", files={"image": series}, data={"slice": 2})
    held = list(store._held.values())[-1][0]
    assert store.bytes - before == held.bytes
    image = held.image
    assert held.bytes >= image.pixels.nbytes + image.display.nbytes + len(series)
    assert held.bytes < image.pixels.nbytes + image.display.nbytes + 2 * len(series) + 100_000
