"""Nothing of what people send is left anywhere: logs, metrics, errors, files, other machines."""

from __future__ import annotations

import io
import logging
import os
import random
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.data import get_testdata_file
from serve.serving import EVENTS, png

from medisee.serve.app import create_app
from medisee.testing import FakeModel

MARK = "zqxMARKERzqx"


def marked_dicom() -> bytes:
    """An MR image with markers in every text that pydicom lets us write."""
    data = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    for keyword in ("PatientName", "PatientID", "StudyDescription", "InstitutionName",
                    "SeriesDescription", "Manufacturer", "ImageComments"):  # fmt: skip
        setattr(data, keyword, MARK)
    data.add_new(0x00091001, "LO", MARK)
    return saved(data)


def saved(data) -> bytes:
    buffer = io.BytesIO()
    data.save_as(buffer)
    return buffer.getvalue()


def marked_png() -> bytes:
    """A picture with a marker in a text chunk and in its pixels."""
    said = PngInfo()
    said.add_text("Comment", MARK)
    pixels = np.frombuffer((MARK * 100).encode(), np.uint8)[:1200].reshape(30, 40)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=said, compress_level=0)
    return buffer.getvalue()


def broken(data: bytes, chance: random.Random) -> bytes:
    """The same with a few bytes changed, or cut."""
    changed = bytearray(data)
    for _ in range(chance.randrange(4)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed[: chance.choice([len(changed), chance.randrange(len(changed))])])


def odd_colours() -> bytes:
    """A DICOM file whose errors could quote its elements."""
    data = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    data.PhotometricInterpretation = MARK
    return saved(data)


def send(client: TestClient, chance: random.Random, kinds: list[bytes]) -> list[str]:
    """A few requests of different kinds with markers all over; texts of the errors."""
    data = chance.choice(kinds)
    image = data if chance.random() < 0.5 else broken(data, chance)
    files = {"image": (f"{MARK}.dcm", image)}
    question = chance.choice([f"Where is {MARK}?", f"absent {MARK}", MARK * 300])
    form = {"question": question, "window": chance.choice(["", "40,400", MARK])}
    headers = {"User-Agent": MARK, "Referer": MARK, **(EVENTS if chance.random() < 0.3 else {})}
    done = [
        client.post("/v1/ask", files=files, data=form, headers=headers),
        client.post("/v1/sessions", files=files, headers=headers),
        client.post(f"/v1/sessions/{MARK}/ask?{MARK}={MARK}", json={"question": question}),
        client.post("/v1/ask", json={"question": question, "image": MARK, MARK: MARK}),
        client.post("/v1/sessions", json={"example": MARK}),
        client.post("/v1/chat/completions", json={"model": MARK, "messages": [
            {"role": chance.choice(["user", MARK]), "content": question}]}),
        client.request(chance.choice(["GET", "PUT", MARK]), f"/{MARK}"),
    ]  # fmt: skip
    opened = done[1].json().get("id")
    if opened:
        answered = client.post(f"/v1/sessions/{opened}/ask", json={"question": question})
        done.append(answered)
        if answered.is_success:
            assert client.get(f"/v1/sessions/{opened}/files/overlay.png").is_success
            names = ("seg.dcm", "report.zip", "mask-1.nii.gz", f"{MARK}.png")
            done += [client.get(f"/v1/sessions/{opened}/files/{name}") for name in names]
    assert all(each.status_code < 500 for each in done), [each.status_code for each in done]
    return [each.text for each in done if each.status_code >= 400]


def rounds(count: int, tmp_path: Path, monkeypatch, capfd, caplog) -> None:
    """Many such requests, then a search through all that the process left behind."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    for name in (
        "uvicorn",
        "fastapi",
        "starlette",
        "asyncio",
        "pydicom",
        "PIL",
        "python_multipart",
    ):
        logging.getLogger(name).setLevel(logging.DEBUG)
    caplog.set_level(logging.INFO)
    chance = random.Random(9)
    kinds = [marked_dicom(), marked_png(), odd_colours()]
    capfd.readouterr(), caplog.clear()  # what pydicom says while it writes these
    with TestClient(create_app(FakeModel())) as client:
        errors = [text for _ in range(count) for text in send(client, chance, kinds)]
        metrics = client.get("/metrics").text
    assert len(errors) > count
    told = capfd.readouterr()
    places = {
        "errors": "\n".join(errors),
        "metrics": metrics,
        "output": told.out + told.err,
        # httpx is the client here, and may say what it asks for
        "logs": "\n".join(r.getMessage() for r in caplog.records if not r.name.startswith("http")),
    }
    for place, text in places.items():
        assert MARK not in text, (place, text[max(text.find(MARK) - 200, 0) :][:400])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_nothing_is_left_behind(tmp_path, monkeypatch, capfd, caplog):
    rounds(15, tmp_path, monkeypatch, capfd, caplog)


@pytest.mark.slow
def test_nothing_is_left_behind_by_many(tmp_path, monkeypatch, capfd, caplog):
    rounds(400, tmp_path, monkeypatch, capfd, caplog)


def test_large_uploads_stay_in_memory(client, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a file was opened for writing")

    monkeypatch.setattr("tempfile._TemporaryFileWrapper.__init__", refuse)
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    large = png(1500, 2000)
    assert len(large) > 2 << 20
    assert client.post("/v1/sessions", files={"image": large}).status_code == 201


def test_no_connection_is_ever_made(client, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was made")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    url = {"url": "http://127.0.0.1/picture.png"}
    parts = [{"type": "image_url", "image_url": url}, {"type": "text", "text": "Where?"}]
    body = {"model": "fake", "messages": [{"role": "user", "content": parts}]}
    assert client.post("/v1/chat/completions", json=body).status_code == 400
    for image in ("http://127.0.0.1/a.png", "/etc/passwd", "file:///etc/passwd"):
        done = client.post("/v1/ask", json={"image": image, "question": "Where?"})
        assert done.status_code == 400
        done = client.post("/v1/sessions", json={"example": image})
        assert done.status_code == 400
    done = client.post("/v1/ask", files={"image": png()}, data={"question": "Where?"})
    assert done.status_code == 200


@pytest.mark.slow
def test_nano_answers_with_all_sockets_blocked(tmp_path):
    """A process of its own: loading and answering, too, reach for nothing."""
    code = textwrap.dedent("""
        import socket, sys
        def audit(event, args):
            if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
                raise SystemExit("a connection was made")
            if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
                raise SystemExit(f"a file was written: {args[0]}")
        sys.dont_write_bytecode = True
        from fastapi.testclient import TestClient
        import medisee
        from medisee.serve.app import create_app
        sys.addaudithook(audit)
        with TestClient(create_app(medisee.load("nano"))) as client:
            body = {"example": "abdomen-mr", "question": "Which organ makes bile?"}
            print(client.post("/v1/ask", json=body).json()["findings"][0]["label"])
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=tmp_path, env={**os.environ}, timeout=300)  # fmt: skip
    assert done.stdout.strip() == "liver", done.stderr
