"""The app around a model without weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the server needs the extra serve")
pytest.importorskip("prometheus_client", reason="the server needs the extra serve")

from fastapi.testclient import TestClient
from serve.serving import SlowModel, png

from medisee.serve.app import create_app
from medisee.testing import FakeModel


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(create_app(FakeModel())) as client:
        yield client


@pytest.fixture
def session(client: TestClient) -> str:
    """The path of an open session."""
    done = client.post("/v1/sessions", files={"image": png()})
    return f"/v1/sessions/{done.json()['id']}"


@pytest.fixture
def slow() -> Iterator[tuple[TestClient, SlowModel]]:
    model = SlowModel()
    with TestClient(create_app(model)) as client:
        yield client, model


@pytest.fixture
def session_with_map() -> Iterator[tuple[TestClient, str]]:
    """A session whose findings carry a similarity map."""
    grid = np.linspace(-3, 5, 64).reshape(8, 8)

    class Mapping(FakeModel):
        def open(self, image: Any) -> Any:
            session = super().open(image)
            plain = session._answer

            def mapped(*given: Any, **named: Any) -> Any:
                answer = plain(*given, **named)
                answer.findings = [replace(f, similarity=grid) for f in answer.findings]
                return answer

            session._answer = mapped
            return session

    with TestClient(create_app(Mapping())) as client:
        key = client.post("/v1/sessions", files={"image": png()}).json()["id"]
        yield client, f"/v1/sessions/{key}"


@pytest.fixture
def nifti_bytes() -> bytes:
    """A volume of 8 x 10 x 12 voxels."""
    import nibabel

    image = nibabel.Nifti1Image(np.arange(960, dtype=np.int16).reshape(8, 10, 12), np.eye(4))
    return image.to_bytes()


@pytest.fixture
def answer_schema() -> Any:
    path = Path(__file__).resolve().parents[2] / "docs" / "answer.schema.json"
    return json.loads(path.read_text(encoding="utf-8"))
