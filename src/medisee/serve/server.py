"""Listening: uvicorn around the app, with its own patience for half-sent requests."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from medisee.errors import InputError

__all__ = [
    "LOOPBACK_NAMES",
    "address_of",
    "check_exposure",
    "is_loopback",
    "listen",
    "make_server",
    "run",
]

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
HEADER_SECONDS = 10.0
STOP_SECONDS = 10
BACKLOG = 512


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, token: str | None) -> None:
    """Raises InputError where others could reach a server without a token."""
    if token is None and not is_loopback(host):
        raise InputError(
            f"other machines can reach {host}: choose a --token, or listen on 127.0.0.1"
        )


class PatientProtocol(H11Protocol):
    """Drops connections whose request line and headers do not come in time."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waiting: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, self._look)

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(HEADER_SECONDS, self._look)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        self._waiting = None
        working = self.cycle is not None and not self.cycle.response_complete
        half_sent = self.cycle is None or bool(self.conn.trailing_data[0])
        if half_sent and not working:
            self.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there, with port 0 at any free one; InputError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or "not an address of this machine"
        raise InputError(f"cannot listen on {host}:{port} ({reason}); try --port 0") from error


def address_of(listening: socket.socket, host: str) -> str:
    """What to type into a browser on this machine."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listening.getsockname()[1]}/"


def make_server(app: Any) -> uvicorn.Server:
    """uvicorn as we run our apps: no access log, no version in headers, bounded waits."""
    return uvicorn.Server(
        uvicorn.Config(
            app, http=PatientProtocol, ws="none", lifespan="on", access_log=False,
            log_level="critical", server_header=False, timeout_keep_alive=5,
            backlog=BACKLOG, timeout_graceful_shutdown=STOP_SECONDS,
        )
    )  # fmt: skip


def run(app: Any, listening: socket.socket) -> None:
    """Serve until stopped with Ctrl-C or SIGTERM; answers that have begun are finished."""
    make_server(app).run(sockets=[listening])
