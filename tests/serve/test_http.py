"""Sessions and one-shot questions: what goes in, what comes out, what is refused."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serve.serving import EVENTS, png

from medisee.serve.app import create_app
from medisee.serve.limits import Limits
from medisee.structures import decode_rle
from medisee.testing import FakeModel

QUESTION = "Where is the liver?"


def events(text):
    """(event, data, id) of a body of server-sent events."""
    blocks = [dict(line.split(": ", 1) for line in block.split("\n"))
              for block in text.strip().split("\n\n")]  # fmt: skip
    return [(b["event"], json.loads(b["data"]), b.get("id")) for b in blocks]


def pixels(response):
    assert response.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(response.content)))


def test_a_session_tells_what_is_known_of_the_image(client):
    done = client.post("/v1/sessions", files={"image": ("secret-name.png", png(40, 60))})
    assert done.status_code == 201
    told = done.json()
    assert (told["image"]["width"], told["image"]["height"]) == (60, 40)
    assert told["image"]["grey"] is True
    assert told["expires_in"] == 1800
    assert "secret-name" not in done.text
    assert client.get(f"/v1/sessions/{told['id']}").json() == told


def test_an_example_opens_with_its_question_first(client):
    for name in ("example:abdomen-mr", "abdomen-mr"):
        told = client.post("/v1/sessions", json={"example": name}).json()
        assert told["image"]["modality"] == "MR"
        assert told["image"]["orientation"] == {"left": "R", "top": "A"}
        assert told["suggestions"][0].startswith("Which large organ")


def test_choices_of_slice_plane_and_window(client, nifti_bytes):
    form = {"slice": "3", "plane": "sagittal", "window": "40,400"}
    told = client.post("/v1/sessions", files={"image": nifti_bytes}, data=form).json()["image"]
    assert (told["slice"], told["slices"], told["plane"]) == (3, 8, "sagittal")
    assert "window centre 40, width 400" in told["notes"]
    beyond = client.post("/v1/sessions", files={"image": nifti_bytes}, data={"slice": "99"})
    assert beyond.status_code == 400
    assert "0 to" in beyond.json()["error"]["message"]


def test_a_question_is_answered_with_json(client, session):
    done = client.post(f"{session}/ask", json={"question": QUESTION})
    answer = done.json()
    assert answer["text"] == "The liver is in the middle."
    assert decode_rle(answer["findings"][0]["mask"]).shape == (40, 60)
    assert answer["provenance"]["checksum"] == "sha256:" + "0" * 64
    assert done.headers["x-medisee-round"] == "1"
    assert done.headers["x-medisee-model"] == "fake"


def test_answers_fit_the_schema(client, session, answer_schema):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(
        client.post(f"{session}/ask", json={"question": QUESTION}).json(), answer_schema
    )


def test_masks_alone(client, session):
    answer = client.post(f"{session}/ask", json={"question": QUESTION, "explain": False}).json()
    assert answer["text"] == ""
    assert len(answer["findings"]) == 1


def test_events_bring_findings_first_then_words_then_all(client, session):
    done = client.post(f"{session}/ask", json={"question": QUESTION}, headers=EVENTS)
    assert done.headers["content-type"].startswith("text/event-stream")
    got = events(done.text)
    assert [name for name, _, _ in got] == ["answer", *["text"] * 6, "done"]
    assert got[0][1]["findings"]
    assert got[0][1]["text"] == ""
    words = "".join(data["piece"] for name, data, _ in got if name == "text")
    assert words.strip() == got[-1][1]["text"] == "The liver is in the middle."
    assert {number for _, _, number in got} == {"1"}


def test_several_questions_come_back_in_order(client, session):
    asked = ["Where is it?", "Is the absent one here?", QUESTION]
    done = client.post(f"{session}/ask", json={"question": asked})
    assert [answer["question"] for answer in done.json()] == asked
    assert [answer["refusal"] for answer in done.json()] == [None, "not_in_view", None]
    assert done.headers["x-medisee-round"] == "1,2,3"
    got = events(client.post(f"{session}/ask", json={"question": asked}, headers=EVENTS).text)
    last = {number: data["question"] for name, data, number in got if name == "done"}
    assert last == {"4": asked[0], "5": asked[1], "6": asked[2]}


def test_files_of_every_round(client, session):
    client.post(f"{session}/ask", json={"question": QUESTION})
    client.post(f"{session}/ask", json={"question": "Is the absent one here?"})
    assert pixels(client.get(f"{session}/image.png")).shape == (40, 60, 3)
    assert pixels(client.get(f"{session}/files/overlay.png?round=1")).ndim == 3
    mask = pixels(client.get(f"{session}/files/mask-1.png?round=1"))
    assert mask.shape == (40, 60)
    assert set(np.unique(mask)) == {0, 255}
    told = client.get(f"{session}/files/answer.json").json()  # the last one
    assert told["refusal"] == "not_in_view"
    for name, code in (
        ("mask-2.png?round=1", "no_file"),
        ("mask-1.png?round=2", "no_file"),
        ("similarity-1.png?round=1", "no_file"),
        ("overlay.png?round=3", "no_round"),
        ("overlay.json", "no_file"),
    ):
        refused = client.get(f"{session}/files/{name}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, code)


def test_a_picture_says_what_made_it(client, session):
    client.post(f"{session}/ask", json={"question": QUESTION})
    picture = Image.open(io.BytesIO(client.get(f"{session}/files/mask-1.png").content))
    assert picture.info["Software"].startswith("MediSee ")
    assert "sha256:" in picture.info["Software"]


def test_a_similarity_map_is_a_picture(session_with_map):
    client, session = session_with_map
    client.post(f"{session}/ask", json={"question": QUESTION})
    grid = pixels(client.get(f"{session}/files/similarity-1.png"))
    assert (grid.min(), grid.max(), grid.shape) == (0, 255, (8, 8))


def test_a_session_can_be_forgotten(client, session):
    assert client.delete(session).status_code == 204
    for done in (
        client.get(session),
        client.delete(session),
        client.post(f"{session}/ask", json={"question": QUESTION}),
    ):
        assert (done.status_code, done.json()["error"]["code"]) == (404, "no_session")


def test_earlier_rounds_are_read_along(slow):
    client, _ = slow
    session = f"/v1/sessions/{client.post('/v1/sessions', files={'image': png()}).json()['id']}"
    held = client.app.state.service.store.get(session.rsplit("/", 1)[1])
    client.post(f"{session}/ask", json={"question": "First?"})
    client.post(f"{session}/ask", json={"question": "Second?"})
    assert held.session.histories == [[("First?", "word0 word1 word2 word3 word4")]]


@pytest.mark.parametrize("way", ["multipart", "json"])
def test_one_shot(client, way):
    if way == "multipart":
        done = client.post("/v1/ask", files={"image": png()}, data={"question": QUESTION})
    else:
        image = base64.b64encode(png()).decode()
        done = client.post("/v1/ask", json={"image": image, "question": QUESTION})
    assert done.json()["text"] == "The liver is in the middle."
    assert len(client.app.state.service.store) == 0


def test_one_shot_with_several_questions_and_events(client):
    form = {"question": ["One?", "Two?"], "explain": "false"}
    done = client.post("/v1/ask", files={"image": png()}, data=form)
    assert [answer["question"] for answer in done.json()] == ["One?", "Two?"]
    done = client.post("/v1/ask", files={"image": png()}, data=form, headers=EVENTS)
    assert [name for name, _, _ in events(done.text)] == ["answer", "answer", "done", "done"]


JSON = {"content-type": "application/json"}
REFUSED = {
    "no image": ({"json": {"question": "Where?"}}, 400),
    "image and example": ({"json": {"question": "Where?", "image": "aGk=", "example": "x"}}, 400),
    "no question": ({"json": {"example": "abdomen-mr"}}, 400),
    "empty question": ({"json": {"example": "abdomen-mr", "question": " "}}, 400),
    "long question": ({"json": {"example": "abdomen-mr", "question": "a" * 2001}}, 400),
    "many questions": ({"json": {"example": "abdomen-mr", "question": ["a"] * 17}}, 400),
    "unknown example": ({"json": {"example": "nothing", "question": "Where?"}}, 400),
    "unknown field": ({"json": {"example": "abdomen-mr", "question": "Where?", "x": 1}}, 400),
    "no base64": ({"json": {"image": "\u00e4", "question": "Where?"}}, 400),
    "no JSON": ({"content": b"{", "headers": JSON}, 400),
    "deep JSON": ({"content": b"[" * 100_000, "headers": JSON}, 400),
    "no UTF-8": ({"content": b'"\xff"', "headers": JSON}, 400),
    "other body": ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415),
    "no body": ({}, 415),
    "no picture": ({"files": {"image": b"not an image"}, "data": {"question": "Where?"}}, 400),
    "empty file": ({"files": {"image": b""}, "data": {"question": "Where?"}}, 400),
    "image as text": ({"files": {"other": b""}, "data": {"image": "x", "question": "Where?"}}, 400),
    "two files": ({"files": [("image", png()), ("image", png())]}, 400),
    "no boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
    "bad slice": ({"json": {"example": "abdomen-mr", "question": "Where?", "slice": -1}}, 400),
    "no such slice": ({"json": {"example": "abdomen-mr", "question": "Where?", "slice": 1}}, 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_shape(client, name):
    given, status = REFUSED[name]
    done = client.post("/v1/ask", **given)
    assert done.status_code == status, done.text
    error = done.json()["error"]
    assert set(error) == {"code", "message", "status"}
    assert "\n" not in error["message"]
    assert "Traceback" not in done.text


def test_unknown_paths_and_methods_have_the_same_shape(client):
    assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert client.get("/v1/ask").json()["error"]["code"] == "method_not_allowed"


def test_limits_on_body_and_pixels():
    from medisee.io import Limits as ImageLimits

    limits = Limits(body_bytes=100_000, image=ImageLimits(pixels=1_000_000))
    with TestClient(create_app(FakeModel(), limits)) as client:
        large = client.post("/v1/ask", files={"image": b"x" * 100_001}, data={"question": "Where?"})
        assert large.status_code == 413
        chunked = client.post("/v1/ask", content=iter([b"x" * 60_000] * 2), headers=JSON)
        assert chunked.status_code == 413
        bomb = io.BytesIO()
        Image.new("1", (2000, 2000)).save(bomb, "PNG")
        assert len(bomb.getvalue()) < 100_000
        many = client.post("/v1/sessions", files={"image": bomb.getvalue()})
        assert many.status_code == 400
        assert "more than the 1 million pixels" in many.json()["error"]["message"]
        assert client.app.state.service.inbox.bytes == 0


def test_uploads_together_are_bounded():
    limits = Limits(body_bytes=100_000, inbox_bytes=50_000)
    with TestClient(create_app(FakeModel(), limits)) as client:
        full = client.post("/v1/ask", files={"image": b"x" * 60_000}, data={"question": "Where?"})
        assert full.status_code == 503
        assert full.headers["retry-after"] == "1"


def test_the_document_describes_every_body(client):
    document = client.get("/openapi.json").json()
    content = document["paths"]["/v1/ask"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in schemas


def test_health_and_metrics(client, session):
    client.post(f"{session}/ask", json={"question": [QUESTION, "Is the absent one here?"]})
    assert client.get("/health").json()["status"] == "ok"
    told = client.get("/metrics").text
    for line in (
        'medisee_answers_total{outcome="found"} 1.0',
        'medisee_answers_total{outcome="not_in_view"} 1.0',
        'medisee_requests_total{method="POST",route="/v1/sessions/{session}/ask",status="200"} 1.0',
        "medisee_sessions 1.0",
        'medisee_batch_size_bucket{le="2.0"} 1.0',
        'medisee_model_info{checksum="sha256:',
    ):
        assert line in told


def test_the_page_is_served(client):
    done = client.get("/")
    assert done.status_code == 200
    assert "MediSee" in done.text
