"""The real model behind the server: what is answered together equals what is answered alone."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

import medisee
from medisee.serve.app import create_app
from medisee.serve.limits import Limits

QUESTIONS = [
    "Which large organ here makes bile and breaks down poisons?",
    "Where is the spleen?",
    "How is the weather?",
    "Which bean-shaped organ on the patient's right makes urine?",
    "Where are both kidneys?",
]


@pytest.fixture(scope="module")
def model():
    return medisee.load("nano")


def timeless(answer):
    return {name: value for name, value in answer.items() if name != "seconds"}


@pytest.mark.slow
def test_a_batch_changes_no_answer(model):
    with TestClient(create_app(model, Limits(gather_seconds=0.5))) as client:
        body = {"example": "abdomen-mr", "question": QUESTIONS}
        together = client.post("/v1/ask", json=body).json()
        key = client.post("/v1/sessions", json={"example": "abdomen-mr"}).json()["id"]
        held = client.app.state.service.store.get(key)
        alone = []
        for question in QUESTIONS:
            held.history = []
            answer = client.post(f"/v1/sessions/{key}/ask", json={"question": question})
            alone.append(answer.json())
    assert [timeless(each) for each in together] == [timeless(each) for each in alone]


def test_nano_answers_over_http(model):
    with TestClient(create_app(model)) as client:
        body = {"example": "abdomen-mr", "question": QUESTIONS[0]}
        done = client.post("/v1/ask", json=body)
    answer = done.json()
    assert answer["findings"][0]["label"] == "liver"
    assert answer["text"].startswith("The liver")
    assert answer["provenance"]["checksum"] == f"sha256:{model.checksum}"
