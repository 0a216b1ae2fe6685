"""What clients send: JSON or multipart, read into memory and nowhere else, within the limits."""

from __future__ import annotations

import asyncio
import base64
import binascii
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from medisee.questions import MAX_CHARACTERS

from .errors import ServeError, invalid_request
from .limits import Limits

__all__ = ["AskRequest", "Inbox", "OneShotRequest", "SessionRequest", "body_docs", "decode_base64"]

Question = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
Index = Annotated[int, Field(ge=0, le=1_000_000)]

_IMAGE = "PNG, JPEG, TIFF, BMP, WebP, DICOM or single-file NIfTI (also .gz)"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AskRequest(_Strict):
    """One question, or several that do not know of each other."""

    question: Question | Annotated[list[Question], Field(min_length=1)]
    explain: bool = Field(True, description="Words too, or masks alone.")

    @property
    def questions(self) -> list[str]:
        """The questions as a list."""
        return [self.question] if isinstance(self.question, str) else self.question


class SessionRequest(_Strict):
    """An image, and which part of its file to show; as the options of `medisee ask`."""

    image: str | None = Field(None, description=f"{_IMAGE}, in base64.")
    example: str | None = Field(
        None, max_length=64, description="A built-in example instead; see /v1/examples."
    )
    slice: Index | None = Field(None, description="Slice of a volume, from 0; else the middle.")
    plane: Literal["axial", "coronal", "sagittal"] | None = None
    frame: Index | None = Field(None, description="Frame of a series, from 0.")
    window: str | None = Field(
        None, max_length=64, description="CENTRE,WIDTH such as 40,400, or a name such as lung."
    )

    @property
    def choices(self) -> dict[str, Any]:
        """The arguments of `read_image`."""
        return self.model_dump(include={"slice", "plane", "frame", "window"})


class OneShotRequest(SessionRequest, AskRequest):
    """An image and the questions about it."""


Body = TypeVar("Body", bound=BaseModel)


class _InMemory(MultiPartParser):
    """Starlette's parser, which would otherwise write files above 1 MB to disk."""

    spool_max_size = sys.maxsize


class Inbox:
    """Takes in bodies; knows how many bytes of them are in memory."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = 0

    @asynccontextmanager
    async def receive(
        self, request: Request, kind: type[Body]
    ) -> AsyncGenerator[tuple[Body, bytes | None], None]:
        """The body as `kind`, and the image's bytes where it holds one; freed on leaving.

        Raises ServeError for a body that is too large, too slow, or not of this kind.
        """
        counted = _Counter()
        try:
            media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media == "application/json":
                yield await self._json(request, kind, counted)
            elif media == "multipart/form-data" and "image" in kind.model_fields:
                yield await self._multipart(request, kind, counted)
            else:
                also = " or multipart/form-data" if "image" in kind.model_fields else ""
                raise ServeError(415, "unsupported_body", f"send application/json{also}")
        finally:
            self.bytes -= counted.bytes

    async def _json(
        self, request: Request, kind: type[Body], counted: _Counter
    ) -> tuple[Body, bytes | None]:
        raw = b"".join([chunk async for chunk in self._chunks(request, counted)])
        try:
            body = kind.model_validate_json(raw)
        except ValidationError as error:
            raise invalid_request(error.errors()) from None
        image = getattr(body, "image", None)
        return body, None if image is None else decode_base64(image)

    @asynccontextmanager
    async def receive_form(self, request: Request, files: int) -> AsyncGenerator[FormData, None]:
        """A multipart body of other shape than ours, with at most so many files; as `receive`."""
        counted = _Counter()
        try:
            form = await self._form(request, counted, files)
            yield form
            await form.close()
        finally:
            self.bytes -= counted.bytes

    async def _form(self, request: Request, counted: _Counter, files: int = 1) -> FormData:
        parser = _InMemory(
            request.headers, self._chunks(request, counted),
            max_files=files, max_fields=64, max_part_size=64 << 10,
        )  # fmt: skip
        try:
            return await parser.parse()
        except (MultiPartException, KeyError, ValueError):
            raise ServeError(400, "bad_multipart", "the multipart body cannot be read") from None

    async def _multipart(
        self, request: Request, kind: type[Body], counted: _Counter
    ) -> tuple[Body, bytes | None]:
        form = await self._form(request, counted)
        data = await _file_of(form)
        fields = _fields(form.multi_items())
        await form.close()
        try:
            return kind.model_validate(fields), data
        except ValidationError as error:
            raise invalid_request(error.errors()) from None

    async def _chunks(self, request: Request, counted: _Counter) -> AsyncGenerator[bytes, None]:
        limits = self.limits
        self._check(_stated_length(request), 0)
        deadline = time.monotonic() + limits.request_seconds
        stream = request.stream().__aiter__()
        while True:
            patience = min(limits.patience_seconds, deadline - time.monotonic())
            try:
                chunk = await asyncio.wait_for(stream.__anext__(), max(patience, 0))
            except StopAsyncIteration:
                return
            except asyncio.TimeoutError:
                raise ServeError(
                    408, "too_slow", "the request came too slowly", {"Connection": "close"}
                ) from None
            self._check(counted.bytes + len(chunk), len(chunk))
            counted.bytes += len(chunk)
            self.bytes += len(chunk)
            yield chunk

    def _check(self, body: int, more: int) -> None:
        """Refuse a body that is too large, or `more` bytes that find no room."""
        if body > self.limits.body_bytes:
            most = self.limits.body_bytes >> 20
            raise ServeError(
                413, "too_large", f"the body is larger than {most} MiB", {"Connection": "close"}
            )
        if self.bytes + more > self.limits.inbox_bytes:
            raise ServeError(503, "full", "too much is being uploaded now; try again soon")


class _Counter:
    """Bytes of one body that are in memory."""

    bytes = 0


def _stated_length(request: Request) -> int:
    stated = request.headers.get("content-length", "0")
    return int(stated) if stated.isascii() and stated.isdigit() else 0


async def _file_of(form: FormData) -> bytes | None:
    """The bytes of the field `image`."""
    upload = form.get("image")
    if upload is None or upload == "":
        return None
    if isinstance(upload, str):
        raise ServeError(400, "invalid_request", "image: send it as a file")
    return await upload.read()


def _fields(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """The text fields of a form; `question` may come several times, empty ones count as absent."""
    fields: dict[str, Any] = {}
    for name, value in items:
        if hasattr(value, "read") or value == "":
            continue
        if name == "question" and name in fields:
            earlier = fields[name]
            fields[name] = [*(earlier if isinstance(earlier, list) else [earlier]), value]
        else:
            fields[name] = value
    return fields


def decode_base64(text: str) -> bytes:
    """Bytes of base64 text; ServeError where it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ServeError(400, "invalid_request", "image: is not base64") from None


def body_docs(kind: type[BaseModel]) -> dict[str, Any]:
    """The request body of a route for the OpenAPI document: JSON, and multipart with an image."""
    name = {"$ref": f"#/components/schemas/{kind.__name__}"}
    content: dict[str, Any] = {"application/json": {"schema": name}}
    if "image" in kind.model_fields and "messages" not in kind.model_fields:
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        image = {"type": "string", "format": "binary", "description": _IMAGE}
        schema["properties"] = {**schema["properties"], "image": image}
        content["multipart/form-data"] = {"schema": schema}
    return {"requestBody": {"required": True, "content": content}}
