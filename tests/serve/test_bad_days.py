"""Broken clients, too many clients, a killed server: clean errors, and it goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serve.serving import SlowModel, connect, live, png, until

from medisee.serve import server
from medisee.serve.app import create_app
from medisee.serve.limits import Limits
from medisee.testing import FakeModel


@pytest.fixture
def place(monkeypatch):
    """A server that loses patience quickly."""
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.5)
    with live(create_app(FakeModel(), Limits(patience_seconds=0.5))) as place:
        yield place


def read_all(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def is_well(place) -> bool:
    return httpx.get(f"http://{place[0]}:{place[1]}/health", timeout=10).is_success


HEAD = b"POST /v1/ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SENT = {
    "nothing": (b"", b""),
    "half a line": (b"POST /v1/as", b""),
    "half the headers": (b"GET /health HTTP/1.1\r\nHost: loc", b""),
    "half a body": (HEAD + b'Content-Length: 100\r\n\r\n{"question": "W', b"408"),
    "half a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nff\r\nabc", b"408"),
    "no body of a length": (HEAD + b"Content-Length: 100\r\n\r\n", b"408"),
    "a length beyond the limit": (HEAD + b"Content-Length: 99999999999\r\n\r\n", b"413"),
    "a length that is none": (HEAD + b"Content-Length: x\r\n\r\n", b"400"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
    "endless headers": (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000, b"400"),
}


def test_what_is_half_sent_ends_soon(place):
    def send(name):
        data, status = SENT[name]
        with connect(place) as connection:
            connection.sendall(data)
            reply = read_all(connection)  # ends when the server gives up; else it times out
        return name, status in reply.split(b"\r\n")[0] and b"Traceback" not in reply

    with ThreadPoolExecutor(len(SENT)) as pool:
        assert dict(pool.map(send, SENT)) == dict.fromkeys(SENT, True)
    assert is_well(place)


def test_a_body_that_is_cut_off_leaves_nothing(place):
    for _ in range(5):
        with connect(place) as connection:
            connection.sendall(HEAD + b'Content-Length: 100\r\n\r\n{"question"')
    assert is_well(place)


def test_a_client_that_goes_away_stops_its_work():
    model = SlowModel(seconds=0.05, pieces=200)
    with live(create_app(model)) as (host, port):
        body = {"example": "abdomen-mr", "question": "Where?"}
        url = f"http://{host}:{port}/v1/ask"
        headers = {"Accept": "text/event-stream"}
        with httpx.stream("POST", url, json=body, headers=headers, timeout=30) as reply:
            lines = reply.iter_lines()
            next(lines)
            until(lambda: model.said > 2)
        time.sleep(0.3)
        said = model.said
        time.sleep(0.5)
        assert model.said <= said + 1 < 200
        with pytest.raises(httpx.ReadTimeout):  # the same without a stream
            httpx.post(url, json=body, timeout=httpx.Timeout(20, read=1.5))
        time.sleep(0.3)
        said = model.said
        time.sleep(0.5)
        assert model.said <= said + 1 < 200


def test_a_client_that_does_not_read_is_dropped(place):
    host, port = place
    base = f"http://{host}:{port}/v1/sessions"
    key = httpx.post(base, files={"image": png(2500, 2500)}, timeout=30).json()["id"]
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(place)
        connection.sendall(
            f"GET /v1/sessions/{key}/image.png HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        reply = connection.recv(100)
        time.sleep(2)
        reply += read_all(connection)
    assert b"200" in reply[:20]
    assert len(reply) < 9_000_000  # it broke off
    assert is_well(place)


def many(place, count: int) -> None:
    host, port = place
    image = png()

    def ask(number: int) -> int:
        with httpx.Client(timeout=60) as client:
            done = client.post(f"http://{host}:{port}/v1/ask", files={"image": image},
                               data={"question": f"Where is {number}?"})  # fmt: skip
        if done.status_code == 200:
            assert done.json()["question"] == f"Where is {number}?"
        else:
            assert done.headers["retry-after"]
            assert done.json()["error"]["code"] == "full"
        return done.status_code

    with ThreadPoolExecutor(count) as pool:
        codes = list(pool.map(ask, range(count)))
    assert set(codes) <= {200, 503}
    assert 200 in codes
    assert is_well(place)


def test_many_connections_at_once():
    with live(create_app(FakeModel())) as place:
        many(place, 40)


@pytest.mark.slow
def test_two_hundred_connections_at_once():
    with live(create_app(FakeModel())) as place:
        many(place, 200)


def test_a_stop_finishes_what_has_begun():
    model = SlowModel(seconds=0.05, pieces=20)
    with live(create_app(model)) as (host, port):
        begun = threading.Event()

        def ask():
            begun.set()
            body = {"example": "abdomen-mr", "question": "Where?"}
            return httpx.post(f"http://{host}:{port}/v1/ask", json=body, timeout=30)

        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask)
            until(lambda: model.said > 0)
    assert asked.result().json()["text"].endswith("word19")


SERVER = """
import sys
from medisee.serve.app import create_app
from medisee.serve.server import listen, run
from medisee.testing import FakeModel
run(create_app(FakeModel()), listen("127.0.0.1", int(sys.argv[1])))
"""


def start(port: int) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stderr=subprocess.PIPE)

    def answers() -> bool:
        try:
            return is_well(("127.0.0.1", port))
        except httpx.TransportError:
            return False

    until(answers, 60)
    return process


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_killed_under_load_it_starts_again_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start(port)
    ended, served, others = threading.Event(), [], []

    def load() -> None:
        while not ended.is_set():
            try:
                body = {"example": "abdomen-mr", "question": "Where?"}
                served.append(httpx.post(f"http://127.0.0.1:{port}/v1/ask", json=body, timeout=10))
            except httpx.TransportError:
                time.sleep(0.05)
            except Exception as error:  # noqa: BLE001 - told at the end
                others.append(error)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(served) > 10, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(served)
    process = start(port)
    until(lambda: len(served) > before + 10, 60)
    ended.set()
    for thread in threads:
        thread.join()
    process.terminate()
    _, told = process.communicate(timeout=20)
    assert others == []
    assert {done.status_code for done in served} <= {200, 503}
    assert b"Traceback" not in told
