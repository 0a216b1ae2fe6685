"""Counts and durations for Prometheus; never anything that a client sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from medisee.structures import Answer

if TYPE_CHECKING:
    from .service import Service

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_METHODS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_BATCH = (1, 2, 4, 8, 16)


class Metrics:
    """The server's own registry."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        own: Any = {"registry": self.registry, "namespace": "medisee"}
        route = ["method", "route"]
        self.requests = Counter("requests", "HTTP requests", [*route, "status"], **own)
        self.seconds = Histogram(
            "request_seconds", "Duration of requests", route, buckets=_SECONDS, **own
        )
        self.answers = Counter("answers", "Questions by what came of them", ["outcome"], **own)
        self.batches = Histogram(
            "batch_size", "Questions in one pass of the model", buckets=_BATCH, **own
        )
        Info("model", "The model that answers", **own).info(service.identity)
        for name, text, value in self._now(service):
            Gauge(name, text, **own).set_function(value)

    @staticmethod
    def _now(service: Service) -> Iterable[tuple[str, str, Any]]:
        yield "sessions", "Images kept open", lambda: len(service.store)
        yield "session_bytes", "Memory of open images", lambda: service.store.bytes
        yield "upload_bytes", "Bodies in memory", lambda: service.inbox.bytes
        yield (
            "waiting",
            "Questions and images waiting for the model",
            lambda: service.worker.waiting,
        )

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request under its route's template."""
        known = method if method in _METHODS else "other"
        self.requests.labels(known, route, str(status)).inc()
        self.seconds.labels(known, route).observe(seconds)

    def count_answer(self, answer: Answer) -> None:
        """Count one finished answer."""
        outcome = answer.refusal.value if answer.refusal else "found" if answer.findings else "none"
        self.answers.labels(outcome).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
