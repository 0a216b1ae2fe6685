"""Two replicas on Ray Serve, on this machine."""

from __future__ import annotations

import socket
import time

import httpx
import pytest

from medisee.serve.limits import Limits

pytestmark = pytest.mark.slow


def test_two_replicas_answer():
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.serve")
    from medisee.serve.ray import deploy

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        deploy("nano", None, Limits(), replicas=2, host="127.0.0.1", port=port, token="t",
               blocking=False)  # fmt: skip
        base, key = f"http://127.0.0.1:{port}", {"Authorization": "Bearer t"}
        assert httpx.get(f"{base}/v1/models", timeout=60).status_code == 401
        body = {"example": "abdomen-mr", "question": "Which organ makes bile?"}
        for _ in range(4):
            done = httpx.post(f"{base}/v1/ask", json=body, headers=key, timeout=120)
            assert done.json()["findings"][0]["label"] == "liver"
        deadline = time.monotonic() + 60
        running: list[object] = []
        while len(running) < 2 and time.monotonic() < deadline:
            from ray import serve

            [app] = serve.status().applications.values()
            [deployment] = app.deployments.values()
            running = ["RUNNING"] * deployment.replica_states.get("RUNNING", 0)
        assert len(running) == 2
    finally:
        from ray import serve

        serve.shutdown()
        ray.shutdown()
