"""What Label Studio sends to a backend, replayed: label_studio/ml/api_connector.py of
github.com/HumanSignal/label-studio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("fastapi", reason="the server needs the extra serve")

from fastapi.testclient import TestClient
from serve.serving import png

from medisee.data.importers.label_studio import decode_brush
from medisee.io import read_image
from medisee.serve.app import create_app
from medisee.serve.label_studio import encode_brush
from medisee.testing import FakeModel

CONFIG = """
<View>
  <Image name="picture" value="$scan"/>
  <{kind} name="what" toName="picture"><Label value="Liver"/><Label value="Spleen"/></{kind}>
</View>"""


def request(*addresses: str, kind: str = "BrushLabels", config: str = "") -> dict[str, Any]:
    return {
        "tasks": [
            {"id": 7 + n, "data": {"scan": address}, "annotations": [], "predictions": []}
            for n, address in enumerate(addresses)
        ],
        "model_version": "an older one",
        "project": "3.1764000000",
        "label_config": config or CONFIG.format(kind=kind),
        "params": {"login": None, "password": None, "context": None},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    for name in ("slide.png", "more/other scan.png"):
        (tmp_path / name).write_bytes(png())
    return tmp_path


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(create_app(FakeModel(), label_studio_images=folder)) as client:
        yield client


def test_connecting_a_project(client):
    assert client.get("/health").status_code == 200
    asked = {"project": "3.1764000000", "schema": CONFIG, "hostname": "http://localhost:8080",
             "access_token": "abc", "extra_params": None}  # fmt: skip
    done = client.post("/setup", json=asked)
    assert done.status_code == 200
    assert done.json()["model_version"]


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/3/0a1b2c3d-slide.png",
        "/data/local-files/?d=sets/slide.png",
        "https://images.example.org/a/slide.png?signature=1",
        "/data/local-files/?d=other%20scan.png",
    ],
)
def test_a_region_for_each_label_lies_on_what_was_found(client, folder, address):
    [prediction] = client.post("/predict", json=request(address)).json()["results"]
    image = read_image(folder / "slide.png")
    [truth] = FakeModel().open(image).ask("Show the Liver.", explain=False).findings
    assert [each["value"]["brushlabels"] for each in prediction["result"]] == [
        ["Liver"],
        ["Spleen"],
    ]
    region = prediction["result"][0]
    assert (region["from_name"], region["to_name"], region["type"]) == (
        "what", "picture", "brushlabels"
    )  # fmt: skip
    assert (region["original_width"], region["original_height"]) == (image.width, image.height)
    mask = decode_brush(region["value"]["rle"], image.height, image.width)
    assert np.array_equal(mask, truth.mask)
    assert 0 < prediction["score"] <= 1


def test_boxes_are_per_cent_and_tasks_keep_their_order(client, folder):
    asked = request("slide.png", "other scan.png", kind="RectangleLabels")
    results = client.post("/predict", json=asked).json()["results"]
    image = read_image(folder / "slide.png")
    [truth] = FakeModel().open(image).ask("Show the Liver.", explain=False).findings
    assert len(results) == 2
    value = results[0]["result"][0]["value"]
    edges = (value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"])
    size = np.array([image.width, image.height] * 2)
    assert np.allclose(np.array(edges) / 100 * size, truth.box)
    assert value["rectanglelabels"] == ["Liver"]


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        (request("/data/upload/3/absent.png"), 404, "no image of this name"),
        (request("/data/local-files/?d=../../etc/passwd"), 404, "no image of this name"),
        (request("slide.png", config="<View"), 400, "not XML"),
        (request("slide.png", config="<View><Text name='t' value='$t'/></View>"), 400, "Image"),
        ({"tasks": "all"}, 400, "request"),
    ],
)
def test_what_cannot_be_done_has_a_reason(client, asked, status, message):
    done = client.post("/predict", json=asked)
    assert done.status_code == status
    assert message in done.json()["error"]["message"]
    assert "passwd" not in done.text


def test_a_token_is_the_password(folder):
    app = create_app(FakeModel(), token="secret", label_studio_images=folder)
    with TestClient(app) as client:
        assert client.post("/predict", json=request("slide.png")).status_code == 401
        for given, status in (("wrong", 401), ("secret", 200)):
            done = client.post("/predict", json=request("slide.png"), auth=("anyone", given))
            assert done.status_code == status


def test_without_its_folder_it_is_not_there():
    with TestClient(create_app(FakeModel())) as client:
        assert client.post("/predict", json=request("slide.png")).status_code in (404, 405)


@settings(max_examples=20, deadline=None)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_brushes_survive(mask):
    assert np.array_equal(decode_brush(encode_brush(mask), *mask.shape), mask)


def test_long_runs_are_split():
    mask = np.ones((200, 100), bool)
    assert decode_brush(encode_brush(mask), 200, 100).all()
