"""Two replicas on Ray Serve, on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.slow

SLOW_MACHINE = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
}
BODY = {"example": "abdomen-mr", "question": "Which organ makes bile?"}


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in taken]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Ray with two processors. Its agents' ports are given: it waits 15 s at most for others."""
    pytest.importorskip("ray.serve", reason="needs the extra ray")
    for name, value in SLOW_MACHINE.items():
        monkeypatch.setenv(name, value)
    ray = Path(sys.executable).with_name("ray")
    options = ("port", "dashboard-agent-grpc-port", "dashboard-agent-listen-port",
               "runtime-env-agent-port", "metrics-export-port")  # fmt: skip
    ports = dict(zip(options, free_ports(len(options)), strict=True))
    given = [f"--{name}={number}" for name, number in ports.items()]
    command = [ray, "start", "--head", "--num-cpus=2", "--include-dashboard=false",
               "--object-store-memory=100000000", *given]  # fmt: skip
    started = subprocess.run(command, capture_output=True, timeout=300)
    try:
        if started.returncode:
            pytest.skip("Ray does not start on this machine within its own 30 s")
        yield f"127.0.0.1:{ports['port']}"
    finally:
        subprocess.run([ray, "stop", "--force"], capture_output=True, timeout=120)


def until_it_answers(base: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server has ended"
        try:
            if httpx.get(f"{base}/health", timeout=30).is_success:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise AssertionError("the server does not answer")


def replicas(address: str) -> int:
    """How many run."""
    import ray
    from ray import serve

    ray.init(address, log_to_driver=False, logging_level="ERROR")
    try:
        [app] = serve.status().applications.values()
        [deployment] = app.deployments.values()
        return deployment.replica_states.get("RUNNING", 0)
    finally:
        ray.shutdown()


def test_two_replicas_answer(cluster, tmp_path):
    [port] = free_ports(1)
    base, key = f"http://127.0.0.1:{port}", {"Authorization": "Bearer t"}
    command = [sys.executable, "-m", "medisee", "serve", "--ray", "2", "--port", str(port)]
    environment = {**os.environ, "RAY_ADDRESS": cluster, "MEDISEE_TOKEN": "t"}
    with (tmp_path / "said").open("w") as said:
        server = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        try:
            until_it_answers(base, server)
            assert httpx.get(f"{base}/v1/models", timeout=60).status_code == 401
            for _ in range(4):
                done = httpx.post(f"{base}/v1/ask", json=BODY, headers=key, timeout=120)
                assert done.json()["findings"][0]["label"] == "liver"
            assert replicas(cluster) == 2
        finally:
            server.terminate()
            server.wait(60)
    assert f"{base}/" in (tmp_path / "said").read_text()


def test_a_cluster_that_is_not_there_is_told_in_one_line(run, monkeypatch):
    pytest.importorskip("ray.serve", reason="needs the extra ray")
    [port] = free_ports(1)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    done = run("serve", "--ray", "2", "--port", "0")
    assert done.code == 2
    assert "RAY_ADDRESS" in done.err
