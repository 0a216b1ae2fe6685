"""What the plugins of MONAI Label send, replayed: 3D Slicer's (plugins/slicer) and OHIF's
(plugins/ohifv3) of github.com/Project-MONAI/MONAILabel, release of December 2025."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_series import DEPTH, HEIGHT, SECRETS, WIDTH, write_series

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from fastapi.testclient import TestClient
from serve.serving import png

from medisee.hub import TargetRecord
from medisee.serve.app import create_app
from medisee.testing import FakeModel

AFFINE = np.array([[0, -1.5, 0.2, 10], [2, 0, 0, -20], [0.1, 0, 3, 5], [0, 0, 0, 1.0]])
"""Axes swapped, flipped and a little oblique."""

SLICER = {"client_id": "user-xyz", "result_extension": ".nrrd", "result_dtype": "uint8"}
OHIF = {**SLICER, "result_compress": False, "restore_label_idx": False}
QUESTION = {"question": "Show the liver"}


class Knowing(FakeModel):
    """Knows two targets; the second is what it always finds."""

    @property
    def info(self) -> dict[str, Any]:
        """Just the targets."""
        return {"targets": [TargetRecord(name, 5, 1, 0.9) for name in ("spleen", "liver")]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A datastore: a volume, a picture and a DICOM series."""
    voxels = np.arange(960, dtype=np.int16).reshape(8, 10, 12)
    nibabel.Nifti1Image(voxels, AFFINE).to_filename(tmp_path / "abdomen.nii.gz")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "slide.png").write_bytes(png())
    write_series(tmp_path / "ct")
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Knowing(), datastore=folder)) as client:
        yield client


def series_uid(folder: Path) -> str:
    import pydicom

    return str(pydicom.dcmread(next((folder / "ct").iterdir())).SeriesInstanceUID)


def slicer_form(fields: dict[str, str], files: dict[str, tuple[str, bytes]]) -> dict[str, Any]:
    """Body and headers as Slicer's plugin builds them by hand."""
    border = "----------lImIt_of_THE_fIle_eW_$"
    body = b""
    for name, value in fields.items():
        head = f'--{border}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
        body += f"{head}{value}\r\n".encode()
    for name, (path, data) in files.items():
        head = f'--{border}\r\nContent-Disposition: form-data; name="{name}"; filename="{path}"\r\n'
        body += head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n"
    body += f"--{border}--\r\n\r\n".encode()
    headers = {
        "content-type": f"multipart/form-data; boundary={border}",
        "content-length": str(len(body)),
    }
    return {"content": body, "headers": headers}


def slicer_infer(client: TestClient, place: str, params: dict[str, Any], **files: Any) -> Any:
    """Parameters and file of an answer, taken apart as a form."""
    form = slicer_form({"params": json.dumps({**SLICER, **params})}, files)
    reply = client.post(f"/infer/fake?{place}", **form)
    if reply.status_code != 200:
        return reply
    head = f"Content-Type: {reply.headers['content-type']}\r\n\r\n".encode()
    parts = message_from_bytes(head + reply.content).get_payload()
    found = {part.get_param("name", header="content-disposition"): part for part in parts}
    name = found["image"].get_filename()
    return json.loads(found["params"].get_payload()), name, found["image"].get_payload(decode=True)


def read_nrrd(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and index to RAS+ of an NRRD file, read as its definition says."""
    head, _, body = data.partition(b"\n\n")
    assert head.startswith(b"NRRD0004\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:])
    assert fields["space"] == "left-posterior-superior"
    raw = gzip.decompress(body) if fields["encoding"] == "gzip" else body
    sizes = [int(n) for n in fields["sizes"].split()]
    vectors = f"{fields['space directions']} {fields['space origin']}".split()
    affine = np.eye(4)
    columns = [[float(x) for x in vector.strip("()").split(",")] for vector in vectors]
    affine[:3] = np.diag([-1, -1, 1]) @ np.array(columns).T
    return np.frombuffer(raw, np.uint8).reshape(sizes, order="F"), affine


def ellipses(shape: tuple[int, int], depth: int) -> int:
    """Pixels that the model without weights finds in a stack of slices."""
    row, column = np.ogrid[: shape[0], : shape[1]]
    y, x = (
        (row - (shape[0] - 1) / 2) / (shape[0] / 4),
        (column - (shape[1] - 1) / 2) / (shape[1] / 4),
    )
    return int((x * x + y * y <= 1).sum()) * depth


# ---- 3D Slicer -------------------------------------------------------------------------------


def test_slicer_connects(client: TestClient) -> None:
    assert client.get("/auth/").json() == {"enabled": False}
    info = client.get("/info/").json()
    assert not info.get("config")  # Slicer takes that for a server that is too old
    model = info["models"]["fake"]
    assert model["type"] == "segmentation"
    assert model["labels"] == {"spleen": 1, "liver": 2, "finding": 3}
    assert model["config"]["question"] == ""
    assert info["labels"] == []
    assert info["datastore"] == {"total": 3, "completed": 0, "label_tags": {}}
    assert client.get("/train/?check_if_running=true").status_code == 404  # "not running"


def test_slicer_sends_a_volume_and_asks(client: TestClient, folder: Path) -> None:
    """A volume loaded in Slicer: uploaded under the node's name, then named in /infer."""
    before = sorted(folder.rglob("*"))
    data = (folder / "abdomen.nii.gz").read_bytes()
    form = slicer_form({"params": "{}"}, {"file": ("/tmp/slicer/tmp1.nii.gz", data)})
    assert client.put("/datastore/?image=Node+1", **form).json() == {"image": "Node 1"}

    params, name, file = slicer_infer(client, "image=Node+1", QUESTION)

    assert params["label_names"] == {"liver": 1}
    assert params["text"] == "The liver is in the middle."
    assert name.endswith(".nrrd")
    voxels, affine = read_nrrd(file)
    assert voxels.shape == (8, 10, 12)
    assert np.allclose(affine, AFFINE, atol=1e-4)
    assert set(np.unique(voxels)) == {0, 1}
    assert sorted(folder.rglob("*")) == before  # nothing that was sent is on disk


def test_slicer_session(client: TestClient, folder: Path) -> None:
    data = (folder / "abdomen.nii.gz").read_bytes()
    made = client.put(
        "/session/", files=[("files", ("x.nii.gz", data))], data={"client_id": "user-xyz"}
    ).json()
    key = made["session_id"]
    assert client.get(f"/session/{key}").json()["expiry"] > 0
    params, _, file = slicer_infer(client, f"image=Node&session_id={key}", QUESTION)
    assert params["label_names"] == {"liver": 1}
    assert read_nrrd(file)[0].any()
    assert client.delete(f"/session/{key}").status_code == 200
    assert client.get(f"/session/{key}").status_code == 404


def test_slicer_session_of_many_dicom_files(client: TestClient, folder: Path) -> None:
    files = [("files", (p.name, p.read_bytes())) for p in (folder / "ct").iterdir()]
    key = client.put("/session/", files=files).json()["session_id"]
    _, _, file = slicer_infer(client, f"image=&session_id={key}", QUESTION)
    assert read_nrrd(file)[0].shape == (WIDTH, HEIGHT, DEPTH)


def test_slicer_labels_the_next_sample(client: TestClient, folder: Path) -> None:
    sample = client.post("/activelearning/first", json={"client_id": "user-xyz"}).json()
    assert (sample["id"], sample["name"]) == ("abdomen", "abdomen.nii.gz")
    image = client.get("/datastore/image?image=abdomen")
    assert image.content == (folder / "abdomen.nii.gz").read_bytes()

    said = {"label_info": [{"name": "liver", "idx": 1}], "model": "fake", "client_id": "Dr Who"}
    form = slicer_form({"params": json.dumps(said)}, {"label": ("/tmp/l.nii.gz", b"a label")})
    assert client.put("/datastore/label?image=abdomen", **form).json()["image"] == "abdomen"

    assert (folder / "labels" / "final" / "abdomen.nii.gz").read_bytes() == b"a label"
    objects = client.get("/datastore/?output=all").json()["objects"]
    [label] = objects["abdomen"]["labels"].values()
    assert label["info"]["params"]["label_names"] == {"liver": 1}
    assert b"Who" not in b"".join(p.read_bytes() for p in (folder / "labels").rglob("*.json"))
    got = client.get("/datastore/label?label=abdomen&tag=final")
    assert got.content == b"a label"
    assert 'filename="abdomen.nii.gz"' in got.headers["content-disposition"]
    assert client.get("/info/").json()["datastore"]["completed"] == 1
    assert client.post("/activelearning/first", json={}).json()["id"] == "more/slide"


def test_slicer_is_told_why_there_is_nothing(client: TestClient) -> None:
    """Its error window shows the body; an empty picture would show nothing."""
    refused = slicer_infer(client, "image=abdomen", {"question": "Show the absent thing"})
    assert refused.status_code == 404
    assert refused.json()["error"]["message"] == "I cannot answer that."
    empty = slicer_infer(client, "image=abdomen", {})
    assert empty.status_code == 400
    assert "question" in empty.json()["error"]["message"]


def test_slicer_logs_in(folder: Path) -> None:
    with TestClient(create_app(Knowing(), datastore=folder, token="s3cret")) as client:
        assert client.get("/auth/").json() == {"enabled": True}
        for path in ("/info/", "/datastore/", "/datastore/image?image=abdomen", "/session/x"):
            assert client.get(path).status_code == 401
        assert client.get("/auth/token/valid").status_code == 401
        wrong = {"username": "me", "password": "no", "grant_type": "password"}
        assert client.post("/auth/token", data=wrong).status_code == 401
        got = client.post("/auth/token", data={**wrong, "password": "s3cret"}).json()
        headers = {"Authorization": f"{got['token_type']} {got['access_token']}"}
        assert client.get("/auth/token/valid", headers=headers).status_code == 200
        assert client.get("/info/", headers=headers).status_code == 200


# ---- OHIF ------------------------------------------------------------------------------------


def ohif_infer(client: TestClient, image: str, params: dict[str, Any]) -> Any:
    """OHIF's form has the field `params` only, and wants the file alone."""
    form = {"params": (None, json.dumps({**OHIF, **params}))}
    return client.post(
        f"/infer/fake?image={image}&output=image",
        files=form,
        headers={"accept": "application/json, multipart/form-data"},
    )


def test_ohif_asks_about_a_series(client: TestClient, folder: Path) -> None:
    reply = ohif_infer(client, series_uid(folder), QUESTION)
    assert b"encoding: raw" in reply.content  # its reader takes packed ones for 16 bits
    voxels, affine = read_nrrd(reply.content)
    assert voxels.shape == (WIDTH, HEIGHT, DEPTH)
    assert set(np.unique(voxels)) == {0, 2}  # the number that /info/ gives for the liver
    assert (voxels > 0).sum() == ellipses((HEIGHT, WIDTH), DEPTH)
    # Columns to the left, rows to the back, slices upwards along the normal.
    assert np.allclose(affine[:3, :3], np.diag([-0.5, -1.5, 3.0]))
    assert np.allclose(affine[:3, 3], [20, -15, 100])


def test_ohif_from_its_own_page(folder: Path) -> None:
    page = "http://localhost:3000"
    app = create_app(Knowing(), datastore=folder, origins=[page], hosts=["testserver"])
    with TestClient(app) as client:
        asked = {"Origin": page, "Access-Control-Request-Method": "PUT"}
        assert client.options("/datastore/label", headers=asked).status_code == 200
        assert client.get("/info/", headers={"Origin": page}).headers[
            "access-control-allow-origin"] == page  # fmt: skip
        other = client.post("/infer/fake", headers={"Origin": "http://evil.example"})
        assert other.status_code == 403


def test_one_slice(client: TestClient, folder: Path) -> None:
    reply = ohif_infer(client, series_uid(folder), {**QUESTION, "slice": 3})
    voxels, _ = read_nrrd(reply.content)
    assert [bool(voxels[..., k].any()) for k in range(DEPTH)] == [k == 3 for k in range(DEPTH)]


def test_plane_of_a_volume(client: TestClient) -> None:
    params, _, file = slicer_infer(client, "image=abdomen", {**QUESTION, "plane": "sagittal"})
    assert params["label_names"] == {"liver": 1}
    assert read_nrrd(file)[0].shape == (8, 10, 12)


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_nifti(client: TestClient, extension: str) -> None:
    form = slicer_form({"params": json.dumps({**QUESTION, "result_extension": extension})}, {})
    reply = client.post("/infer/fake?image=abdomen&output=image", **form)
    raw = gzip.decompress(reply.content) if extension == ".nii.gz" else reply.content
    image = nibabel.Nifti1Image.from_bytes(raw)
    assert np.allclose(image.affine, AFFINE, atol=1e-4)
    assert np.asarray(image.dataobj).any()


def test_picture_sent_along(client: TestClient) -> None:
    params, _, file = slicer_infer(client, "image=", QUESTION, file=("/tmp/a.png", png(40, 60)))
    assert read_nrrd(file)[0].shape == (60, 40, 1)
    assert params["findings"] == [{"label": "liver", "score": 0.75}]


def test_json_alone(client: TestClient) -> None:
    form = {"params": (None, json.dumps({"question": "Show the absent thing"}))}
    got = client.post("/infer/fake?image=more/slide&output=json", files=form).json()["params"]
    assert got["refusal"] == "not_in_view"


# ---- limits and bad days ---------------------------------------------------------------------


def test_off_by_default() -> None:
    with TestClient(create_app(FakeModel())) as client:
        assert client.get("/info/").status_code == 404
        assert client.get("/datastore/").status_code == 404


@pytest.mark.parametrize(
    "name", ["../out", "/etc/passwd", "a/../../b", ".hidden", "a\\b", "", "x/"]
)
def test_no_label_leaves_the_folder(client: TestClient, folder: Path, name: str) -> None:
    before = sorted(folder.parent.rglob("*"))
    form = {"params": (None, "{}"), "label": ("l.nii.gz", b"x")}
    reply = client.put("/datastore/label", params={"image": name}, files=form)
    assert reply.status_code == 400
    tag = client.put("/datastore/label", params={"image": "abdomen", "tag": "../t"}, files=form)
    assert tag.status_code == 400
    assert sorted(folder.parent.rglob("*")) == before
    assert client.get("/datastore/image", params={"image": name}).status_code == 404


@pytest.mark.parametrize(
    "params",
    [
        "[]",
        "{",
        '{"question": 5}',
        '{"question": "x", "slice": "-1"}',
        '{"result_extension": ".x"}',
    ],
)
def test_bad_options(client: TestClient, params: str) -> None:
    form = {"params": (None, params)}
    reply = client.post("/infer/fake?image=nobody", files=form)
    assert reply.status_code in (400, 404)
    assert set(reply.json()["error"]) == {"code", "message", "status"}


def test_unknown_things(client: TestClient) -> None:
    form = {"params": (None, json.dumps(QUESTION))}
    assert client.post("/infer/other?image=abdomen", files=form).status_code == 404
    assert client.post("/infer/fake?image=nobody", files=form).status_code == 404
    assert client.post("/infer/fake?image=abdomen", json={}).status_code == 400
    assert client.put("/session/", files={"other": b"x"}).status_code == 400
    assert client.get("/datastore/label?label=abdomen&tag=final").status_code == 404


def test_nothing_of_the_patient_goes_out(
    client: TestClient, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    params, _, file = slicer_infer(client, f"image={series_uid(folder)}", QUESTION)
    everything = json.dumps(params) + file[:2000].decode("latin-1") + "".join(capfd.readouterr())
    assert not [secret for secret in SECRETS if secret in everything]
    assert str(folder) not in everything


def test_two_series_of_one_folder(tmp_path: Path) -> None:
    for number, depth in ((3, 5), (4, 6)):
        write_series(tmp_path / str(number), depth=depth, SeriesNumber=number)
        for path in (tmp_path / str(number)).iterdir():
            path.rename(tmp_path / f"{number}-{path.name}")
    with TestClient(create_app(Knowing(), datastore=tmp_path)) as client:
        uids = client.get("/datastore/?output=all").json()["objects"]
        shapes = {read_nrrd(ohif_infer(client, uid, QUESTION).content)[0].shape[2] for uid in uids}
    assert shapes == {5, 6}


def test_uploads_are_forgotten(folder: Path) -> None:
    from medisee.serve.limits import Limits

    with TestClient(
        create_app(Knowing(), Limits(session_seconds=0.05), datastore=folder)
    ) as client:
        made = client.put("/session/", files={"files": ("a.png", png())}).json()
        time.sleep(0.1)
        assert client.get(f"/session/{made['session_id']}").status_code == 404
