"""What stands before every route: who may ask, how long it may take, what is counted."""

from __future__ import annotations

import asyncio
import base64
import hmac
import time
from collections.abc import Collection
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import label_studio, monai_label
from .errors import ServeError, fault, to_response
from .service import Service

__all__ = ["Guard"]

_CHUNK = 256 << 10
_PROTECTED = ("/v1/", "/metrics", *monai_label.PROTECTED, *label_studio.PROTECTED)
"""What a token protects; the page, /health and the documents hold nothing of anybody."""


class Guard:
    """Middleware: host, origin, token; slow readers; headers; errors that nobody caught.

    hosts: names under which the server may be called, None for all. A page elsewhere could make
    a browser call a server on this machine under a name of its own (DNS rebinding).
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        token: str | None,
        hosts: Collection[str] | None,
        origins: Collection[str],
    ) -> None:
        self.app, self.service = app, service
        self._token = None if token is None else token.encode()
        self._hosts, self._origins = hosts, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, reply = time.monotonic(), _Reply(send, self.service)
        try:
            self._admit(scope)
            await self.app(scope, receive, reply)
        except (ClientDisconnect, _GoneError):
            reply.status = reply.status or 499
        except ServeError as error:
            await to_response(error)(scope, receive, reply)
        except Exception as error:  # noqa: BLE001 - the last stop before the client
            fault(error)
            if reply.status:
                raise SystemError("the response broke off") from None
            broken = ServeError(500, "internal", "something went wrong inside the server")
            await to_response(broken)(scope, receive, reply)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.monotonic() - started
            self.service.metrics.count_request(scope["method"], route, reply.status, seconds)

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = _split(f"//{headers.get('host', '')}")
        if self._hosts is not None and host.hostname not in self._hosts:
            raise ServeError(403, "host_not_allowed", "the server is not known by this host name")
        origin = headers.get("origin")
        foreign = origin is not None and _split(origin).netloc != host.netloc
        if foreign and scope["method"] not in ("GET", "HEAD") and origin not in self._origins:
            raise ServeError(403, "origin_not_allowed", "requests from other pages are not allowed")
        if self._token is not None and scope["path"].startswith(_PROTECTED):
            self._check_token(headers.get("authorization", ""), self._token)

    @staticmethod
    def _check_token(authorization: str, token: bytes) -> None:
        if not hmac.compare_digest(_given(authorization), token):
            challenge = {"WWW-Authenticate": "Bearer"}
            raise ServeError(401, "no_token", "a valid token is needed", challenge)


def _given(authorization: str) -> bytes:
    """The token in a header: behind Bearer, or as the password of Basic, with any user."""
    scheme, _, value = authorization.partition(" ")
    if scheme == "Bearer":
        return value.encode("latin-1", "replace")
    with suppress(ValueError):
        if scheme == "Basic":
            return base64.b64decode(value, validate=True).partition(b":")[2]
    return b""


def _split(url: str) -> SplitResult:
    """Parts of an address; empty ones where it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


class _GoneError(Exception):
    """The client no longer takes what it is sent."""


class _Reply:
    """`send` with our headers, in pieces that a slow client can hold up only for a while."""

    def __init__(self, send: Send, service: Service) -> None:
        self._send, self._service = send, service
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message["headers"])
            for name, value in self._service.identity.items():
                headers[f"X-MediSee-{name.title()}"] = value
            headers.setdefault("X-Content-Type-Options", "nosniff")
            headers.setdefault("Cache-Control", "no-store")
        body = message.get("body", b"")
        while len(body) > _CHUNK:
            part = {"type": message["type"], "body": bytes(body[:_CHUNK]), "more_body": True}
            await self._in_time(part)
            body = body[_CHUNK:]
        await self._in_time({**message, "body": body} if "body" in message else message)

    async def _in_time(self, message: Message) -> None:
        try:
            await asyncio.wait_for(self._send(message), self._service.limits.patience_seconds)
        except (asyncio.TimeoutError, OSError):
            raise _GoneError from None
