"""The same app as replicas of Ray Serve: `medisee serve --ray N`.

Ray sends each request to any replica, and a session lives in the one that opened it. So here a
request that belongs together has to travel together: one-shot questions and chat completions work
with any number of replicas; for sessions put a proxy in front that keeps a client on its replica.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from typing import Any

from medisee.errors import InputError

from .limits import Limits

__all__ = ["deploy"]

_QUIET = {"enable_access_log": False, "log_level": "ERROR"}
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report to its makers
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",  # a busy machine takes more than Ray's 5 s
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
}
"""Environment of a Ray that is started here; what the user has set goes first."""


def deploy(
    model: str,
    runtime: str | None,
    limits: Limits,
    *,
    replicas: int,
    host: str,
    port: int,
    token: str | None,
    hosts: Collection[str] | None = None,
    blocking: bool = True,
) -> None:
    """Start Ray here (or join `RAY_ADDRESS`) and serve; each replica loads the model itself.

    Raises InputError where Ray does not start, or where there is no such cluster.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from ray import serve

    _start()
    serve.start(http_options={"host": host, "port": port}, logging_config=_QUIET)
    app = application(model, runtime, limits, replicas, token, hosts)
    serve.run(app, route_prefix="/", blocking=blocking)


def _start() -> None:
    import ray

    _check_cluster(os.environ.get("RAY_ADDRESS", ""))
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises its own kinds, and bare ones
        raise InputError(
            "Ray does not start; start it with `ray start --head`, which says more, and set "
            "RAY_ADDRESS"
        ) from error


def _check_cluster(address: str) -> None:
    """Raises InputError where nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address}, which RAY_ADDRESS names") from error


def application(
    model: str,
    runtime: str | None,
    limits: Limits,
    replicas: int,
    token: str | None,
    hosts: Collection[str] | None,
) -> Any:
    """The Ray Serve application; every replica builds its own app around its own model."""
    from ray import serve

    def build() -> Any:
        from medisee.predictor import load

        from .app import create_app

        return create_app(load(model, runtime=runtime), limits, token=token, hosts=hosts)

    @serve.deployment(
        num_replicas=replicas, max_ongoing_requests=limits.queue, logging_config=_QUIET
    )
    @serve.ingress(build)
    class MediSee:
        """The app; Ray Serve calls it as it would any ASGI application."""

    return MediSee.bind()  # type: ignore[attr-defined]
