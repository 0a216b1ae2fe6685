"""Errors as clients see them: `{"error": {"code", "message"}}`, never a traceback."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from medisee.errors import MediSeeError

__all__ = ["RESPONSES", "ErrorBody", "ServeError", "error_body", "fault", "install", "to_response"]

RETRY_AFTER = "1"
"""Seconds that a client should wait when there is no room."""


class ErrorDetail(BaseModel):
    """What was wrong, for a program and for a person."""

    code: str = Field(examples=["invalid_input"])
    message: str
    status: int = Field(description="The HTTP status, for events of a stream that has begun.")


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody, "description": text}
    for code, text in {
        400: "The image, the question or the request cannot be used",
        401: "The token is missing or wrong",
        403: "The host or origin is not allowed",
        404: "There is no such session, round, file or model",
        408: "The request came too slowly",
        413: "The body is too large",
        415: "The body is of a kind that is not read",
        503: "No room now; Retry-After says when to try again",
        504: "The answer took too long",
    }.items()
}
"""For the OpenAPI document: what any of our routes may answer."""


class ServeError(Exception):
    """An answer with an error status; `message` holds nothing of what the client sent."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})
        if status == 503:
            self.headers.setdefault("Retry-After", RETRY_AFTER)


def as_serve_error(error: BaseException) -> ServeError:
    """What the client is told of an error; a fault of ours keeps its text to itself."""
    if isinstance(error, ServeError):
        return error
    if isinstance(error, MediSeeError):
        return ServeError(400, "invalid_input", str(error))
    if isinstance(error, MemoryError):
        return ServeError(503, "no_memory", "not enough memory for this image; try a smaller one")
    fault(error)
    return ServeError(500, "internal", "something went wrong inside the server")


def error_body(error: BaseException) -> dict[str, Any]:
    """The JSON of an error."""
    known = as_serve_error(error)
    detail = {"code": known.code, "message": known.message, "status": known.status}
    return {"error": detail}


def to_response(error: BaseException) -> JSONResponse:
    """The response for an error."""
    known = as_serve_error(error)
    return JSONResponse(error_body(known), known.status, known.headers)


def fault(error: BaseException) -> None:
    """Report a fault of ours by kind and place; its text could hold what a client sent."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    sys.stderr.write(f"medisee: fault in the server: {type(error).__name__} at {place}\n")


def install(app: FastAPI) -> None:
    """Give every error of the app the one shape."""
    codes = {404: "not_found", 405: "method_not_allowed"}

    async def known(_: Request, error: Exception) -> JSONResponse:
        return to_response(error)

    async def http(_: Request, error: HTTPException) -> JSONResponse:
        code = codes.get(error.status_code, "bad_request")
        message = {404: "there is nothing here", 405: "this method is not allowed here"}.get(
            error.status_code, "the request cannot be read"
        )
        return to_response(ServeError(error.status_code, code, message, error.headers))

    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return to_response(invalid_request(error.errors()))

    app.add_exception_handler(ServeError, known)
    app.add_exception_handler(MediSeeError, known)
    app.add_exception_handler(HTTPException, http)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]


def invalid_request(errors: Any) -> ServeError:
    """Which field is wrong and why, in pydantic's words, without the value that was given."""
    first: dict[str, Any] = next(iter(errors), {})
    place = ".".join(part for part in first.get("loc", ()) if isinstance(part, str))
    kind = str(first.get("type", "invalid")).replace("_", " ")
    return ServeError(400, "invalid_request", f"{_known(place)}: {kind}")


def _known(place: str) -> str:
    """A field's name if it is one of ours: a client's own keys are not repeated."""
    last = place.rsplit(".", 1)[-1]
    return last if last in FIELDS else "request"


FIELDS = frozenset(
    (
        *("question", "explain", "example", "image", "slice", "plane", "frame", "window"),
        *("messages", "model", "content", "stream", "image_url", "url", "text", "role", "type"),
        *("name", "round", "n", "session"),
    )
)
"""Names that may be repeated in an error."""
