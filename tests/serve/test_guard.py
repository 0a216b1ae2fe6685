"""Who may ask: token, host, origin; and when the command refuses to listen."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from serve.serving import SlowModel

from medisee.errors import InputError
from medisee.serve.app import create_app
from medisee.serve.server import check_exposure, listen
from medisee.testing import FakeModel


def test_a_token_protects_what_is_somebodys():
    with TestClient(create_app(FakeModel(), token="s3cret")) as client:
        for path in ("/v1/examples", "/v1/models", "/metrics", "/v1/sessions/x"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
                done = client.get(path, headers=headers)
                assert (done.status_code, done.json()["error"]["code"]) == (401, "no_token")
                assert done.headers["www-authenticate"] == "Bearer"
        assert client.get("/v1/models", headers={"Authorization": "Bearer s3cret"}).is_success
        for path in ("/", "/health", "/openapi.json"):
            assert client.get(path).is_success


def test_a_name_that_is_not_ours_is_refused():
    with TestClient(create_app(FakeModel(), hosts=("localhost", "::1"))) as client:
        for host, status in (
            ("localhost:8000", 200),
            ("[::1]:8000", 200),
            ("evil.example", 403),
            ("localhost.evil.example", 403),
            ("[", 403),
            ("", 403),
        ):
            assert client.get("/health", headers={"Host": host}).status_code == status, host


def test_other_pages_are_refused_unless_named():
    ask = {"json": {"example": "nothing"}}
    with TestClient(create_app(FakeModel(), origins=["https://ours.example"])) as client:
        for origin, status in (
            ("http://testserver", 400),
            ("https://ours.example", 400),
            ("https://evil.example", 403),
            ("null", 403),
        ):
            done = client.post("/v1/sessions", headers={"Origin": origin}, **ask)
            assert done.status_code == status, origin
        asking = {"Origin": "https://ours.example", "Access-Control-Request-Method": "POST"}
        allowed = client.options("/v1/ask", headers=asking)
        assert allowed.headers["access-control-allow-origin"] == "https://ours.example"


def test_cors_is_off_by_default(client):
    asking = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    for done in (client.options("/v1/ask", headers=asking), client.get("/health", headers=asking)):
        assert not any(name.startswith("access-control") for name in done.headers)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_listening_beyond_this_machine_needs_a_token(host):
    with pytest.raises(InputError, match="--token"):
        check_exposure(host, None)
    check_exposure(host, "token")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_this_machine_needs_none(host):
    check_exposure(host, None)


def test_the_command_refuses_in_one_line(run, fake, monkeypatch):
    monkeypatch.delenv("MEDISEE_TOKEN", raising=False)
    done = run("serve", "--host", "0.0.0.0")
    assert done.code == 2
    assert "--token" in done.err
    assert done.err.count("\n") == 1


def test_the_command_hands_its_options_on(run, fake, monkeypatch):
    served = {}
    monkeypatch.setattr(
        "medisee.serve.server.run", lambda app, listening: served.update(app=app, at=listening)
    )
    options = ("--port", 0, "--token", "t", "--sessions", 3, "--keep", 2, "--max-upload", 1)
    done = run("serve", *options)
    assert done.code == 0
    limits = served["app"].state.service.limits
    assert (limits.sessions, limits.session_seconds, limits.body_bytes) == (3, 120, 1 << 20)
    with served["at"] as listening:
        port = listening.getsockname()[1]
    assert port > 0
    assert f"http://127.0.0.1:{port}/" in done.out


def test_a_port_that_is_taken_is_told_in_one_line(run, fake):
    with listen("127.0.0.1", 0) as taken:
        done = run("serve", "--port", taken.getsockname()[1])
    assert done.code == 2
    assert "try --port 0" in done.err
    assert done.err.count("\n") == 1


def test_a_fault_keeps_its_text_to_itself(capfd):
    class Broken(SlowModel):
        def open(self, image):
            raise RuntimeError("secret words")

    with TestClient(create_app(Broken())) as client:
        done = client.post("/v1/sessions", json={"example": "abdomen-mr"})
    assert done.status_code == 500
    assert "secret" not in done.text
    told = capfd.readouterr().err
    assert "RuntimeError at test_guard.py" in told
    assert "secret" not in told
