"""DICOMweb: from the archive to an answer and back into the archive; and its bad days."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_series import HEIGHT, SECRETS, WIDTH, write_series
from dicomweb_server import running

from medisee import dicomweb
from medisee.errors import InputError
from medisee.structures import decode_rle

pytest.importorskip("highdicom", reason="needs the extra dicom")
pytest.importorskip("dicomweb_client", reason="needs the extra dicom")

OBLIQUE = [[0.8, 0.6, 0], [0, 0, -1]]


@pytest.fixture
def archive(monkeypatch):
    for role in ("DICOMWEB", "STORE"):
        for name in ("TOKEN", "USER", "PASSWORD"):
            monkeypatch.delenv(f"MEDISEE_{role}_{name}", raising=False)
    with running() as archive:
        yield archive


@pytest.fixture
def series(archive, tmp_path):
    """The header of one of the images of a series in the archive."""
    return archive.add_folder(write_series(tmp_path / "ct", OBLIQUE))


def address_of(archive, header, level="series"):
    address = f"{archive.url}/studies/{header.StudyInstanceUID}"
    if level != "study":
        address += f"/series/{header.SeriesInstanceUID}"
    if level == "instance":
        address += f"/instances/{header.SOPInstanceUID}"
    return address


def stored(archive, modality):
    found = [header for header in archive.headers if header.Modality == modality]
    return [pydicom.dcmread(io.BytesIO(archive.files[h.SOPInstanceUID])) for h in found]


def left_over():
    return set(Path(tempfile.gettempdir()).glob("medisee-*"))


def test_from_the_archive_to_an_answer_and_back(run, fake, archive, series, tmp_path):
    before = left_over()
    done = run("ask", address_of(archive, series), "Where is it?", "--out", "out",
               "--as", "seg,sr", "--store", archive.url)  # fmt: skip
    assert (done.code, "stored 2 DICOM results" in done.err) == (0, True)
    answer = json.loads((tmp_path / "out" / f"{series.SeriesInstanceUID}.json").read_text("utf-8"))
    [seg], [report] = stored(archive, "SEG"), stored(archive, "SR")
    assert (seg.PatientID, seg.StudyInstanceUID) == ("secret-id", series.StudyInstanceUID)
    assert report.StudyInstanceUID == series.StudyInstanceUID
    truth = {h.SOPInstanceUID: h for h in archive.headers if h.Modality == "CT"}
    order = sorted(truth.values(), key=lambda header: -header.InstanceNumber)
    slices = {s["index"]: decode_rle(s["mask"]) for s in answer["findings"][0]["slices"]}
    shared = seg.SharedFunctionalGroupsSequence[0]
    frames = seg.pixel_array.reshape(-1, HEIGHT, WIDTH)
    assert len(frames) == len(slices) > 1
    cosines = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    assert cosines == series.ImageOrientationPatient
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        [image] = group.DerivationImageSequence[0].SourceImageSequence
        source = truth[image.ReferencedSOPInstanceUID]
        place = group.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(place, source.ImagePositionPatient, atol=1e-4)
        assert np.array_equal(frame, slices[order.index(source)])
    assert left_over() == before


def test_one_image_by_its_address(run, fake, archive, series):
    done = run("ask", address_of(archive, series, "instance"), "Where is it?", "--json")
    value = json.loads(done.out)
    assert value["image"]["source"] == f"{series.SOPInstanceUID}.dcm"
    assert done.code == 0


def test_a_series_of_one_film_is_one_image(run, fake, archive):
    path = pydicom.data.get_testdata_file("examples_ybr_color.dcm", download=False)
    film = archive.add(Path(path).read_bytes())
    study = f"{archive.url}/studies/{film.StudyInstanceUID}"
    done = run("ask", study, "Where?", "--series", film.SeriesNumber, "--frame", 3, "--json")
    value = json.loads(done.out)
    assert value["image"]["source"] == f"{film.SeriesInstanceUID}.dcm"
    assert value["image"]["notes"] == ["frame 3 of 30, counted from 0"]
    archive.bad = "cut"
    assert "not all of it" in run("ask", study, "Where?").err


def test_a_study_of_several_series_asks_which(run, fake, archive, series, tmp_path):
    more = write_series(tmp_path / "more", depth=2, SeriesNumber=7, Modality="MR",
                        StudyInstanceUID=series.StudyInstanceUID)  # fmt: skip
    archive.add_folder(more)
    archive.add_folder(write_series(tmp_path / "seg", depth=1, Modality="SEG",
                                    StudyInstanceUID=series.StudyInstanceUID))  # fmt: skip
    address = address_of(archive, series, "study")
    unclear = run("ask", address, "Where?")
    assert unclear.code == 2
    assert "3 (CT, 5 images), 7 (MR, 2 images); choose one with --series" in unclear.err
    done = run("ask", address, "Where?", "--series", 7, "--json")
    assert json.loads(done.out)["volume"]["slices"] == 2


def test_batch_over_a_search(run, fake, archive, series, tmp_path):
    other = archive.add_folder(write_series(tmp_path / "mr", depth=2, Modality="MR"))
    archive.add_folder(write_series(tmp_path / "third", PatientID="another"))
    (tmp_path / "q.txt").write_text("Where is it?\n", encoding="utf-8")
    archive.page = 1  # results come page by page
    words = ["batch", f"{archive.url}/studies?PatientID=secret-id", "-q", "q.txt", "-o", "out",
             "--store", f"{archive.url}/studies"]  # fmt: skip
    done = run(*words)
    assert (done.code, "2 of 2 images answered" in done.out) == (0, True)
    report = (tmp_path / "out" / "report.jsonl").read_text("utf-8")
    names = {json.loads(line)["name"] for line in report.splitlines()}
    assert names == {f"{h.StudyInstanceUID}/{h.SeriesInstanceUID}" for h in (series, other)}
    assert {seg.StudyInstanceUID for seg in stored(archive, "SEG")} == {
        header.StudyInstanceUID for header in (series, other)
    }
    assert not any(word in report + done.out + done.err for word in SECRETS)
    archive.page = 100
    assert "2 of them done before" in run(*words).err
    only_mr = run("batch", f"{archive.url}/series?Modality=MR", "-q", "q.txt", "-o", "mr-out")
    assert "1 of 1" in only_mr.out


def test_what_one_series_fails_of_is_told_and_the_others_go_on(
    run, fake, archive, series, tmp_path
):
    (tmp_path / "q.txt").write_text("Where is it?\n", encoding="utf-8")
    archive.bad = "fewer"
    done = run("batch", address_of(archive, series, "study"), "-q", "q.txt", "-o", "out")
    assert done.code == 4
    [line] = (tmp_path / "out" / "report.jsonl").read_text("utf-8").splitlines()
    assert "sent 4 of 5 images" in json.loads(line)["failed"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("403", "MEDISEE_DICOMWEB_TOKEN"),
        ("404", "knows no such study"),
        ("500", "HTTP status 500"),
        ("html", "not DICOM"),
        ("junk", "not DICOM"),
        ("cut", "not all of it"),
        ("broken off", "broke off"),
        ("fewer", "sent 4 of 5"),
        ("slow", "gives no answer"),
    ],
)
def test_bad_days_are_one_line(run, fake, archive, series, monkeypatch, bad, message, tmp_path):
    before = left_over()
    archive.bad = bad
    monkeypatch.setattr(dicomweb, "_SECONDS", (1, 0.3) if bad == "slow" else (5, 20))
    done = run("ask", address_of(archive, series), "Where?", "--out", "out")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert not any(word in done.err for word in (*SECRETS, series.StudyInstanceUID))
    assert not (tmp_path / "out").exists()
    assert left_over() == before


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://localhost:1/studies/1.2", "cannot be reached"),
        ("https://example.org/picture.png", "DICOMweb address"),
        ("https://example.org/studies/1.2/../../x", "DICOMweb address"),
        ("https://you:secret@example.org/studies/1.2", "no place for a password"),
        ("http://[::1/studies/1.2", "of the form"),
    ],
)
def test_addresses_that_are_none(run, fake, address, message):
    done = run("ask", address, "Where?")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert "you:" not in done.err


def test_credentials_go_to_the_server_that_they_are_for(run, fake, archive, series, monkeypatch):
    monkeypatch.setenv("MEDISEE_DICOMWEB_TOKEN", "for-the-source")
    archive.wants = "Bearer for-the-source"
    with running() as sink:
        sink.wants = "Basic bWU6cHc="  # me:pw
        words = ["ask", address_of(archive, series), "Where?", "-o", "out", "--store", sink.url]
        refused = run(*words)
        assert (refused.code, "MEDISEE_STORE_TOKEN" in refused.err) == (2, True)
        assert archive.asked == []  # nothing was retrieved, let alone asked
        monkeypatch.setenv("MEDISEE_STORE_USER", "me")
        monkeypatch.setenv("MEDISEE_STORE_PASSWORD", "pw")
        done = run(*words)
        assert done.code == 0
        assert len(stored(sink, "SEG")) == 1
        sent = [headers.get("Authorization") for _, _, headers in sink.asked]
        assert set(sent) == {None, "Basic bWU6cHc="}
    assert "for-the-source" not in done.out + done.err + refused.err


def test_an_archive_that_does_not_store_says_so_and_results_stay(
    run, fake, archive, series, tmp_path
):
    archive.bad = "full"
    done = run("ask", address_of(archive, series), "Where?", "-o", "out", "--store", archive.url)
    assert done.code == 2
    assert "did not store 1 of 1 results (Failure Reason A700)" in done.err
    assert list((tmp_path / "out").glob("*.seg.dcm"))


def test_store_wants_dicom_and_files(run, fake, archive, series, scan):
    picture = run("ask", scan, "Where?", "--store", archive.url)
    assert "is not a DICOM file" in picture.err
    unwritten = run("ask", address_of(archive, series), "Where?", "--json", "--store", archive.url)
    assert "--out" in unwritten.err
    assert picture.code == unwritten.code == 2


def test_a_certificate_that_nobody_vouches_for_is_refused(monkeypatch, archive):
    import requests

    def refuse(*_: object, **__: object) -> None:
        raise requests.exceptions.SSLError("certificate verify failed")

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", refuse)
    with pytest.raises(InputError, match="REQUESTS_CA_BUNDLE"):
        dicomweb.search("https://example.org/studies/1.2")
