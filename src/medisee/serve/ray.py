"""The same app as replicas of Ray Serve: `medisee serve --ray N`.

Ray sends each request to any replica, and a session lives in the one that opened it. So here a
request that belongs together has to travel together: one-shot questions and chat completions work
with any number of replicas; for sessions put a proxy in front that keeps a client on its replica.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from .limits import Limits

__all__ = ["deploy"]

_QUIET = {"enable_access_log": False, "log_level": "ERROR"}


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
    """Start Ray here (or join `RAY_ADDRESS`) and serve; each replica loads the model itself."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    from ray import serve

    serve.start(http_options={"host": host, "port": port}, logging_config=_QUIET)
    app = application(model, runtime, limits, replicas, token, hosts)
    serve.run(app, route_prefix="/", blocking=blocking)


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
