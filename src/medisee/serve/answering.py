"""How answers go out: one JSON value, or server-sent events as they come about."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.responses import Response

from medisee.io import check_formats, encode_results, why_not
from medisee.structures import Answer

from .errors import ServeError, error_body
from .service import Asked, Service, unless_gone
from .worker import Event

__all__ = [
    "ANSWER_DOCS",
    "EVENTS",
    "FILE_DOCS",
    "UNBUFFERED",
    "answer_dict",
    "answered",
    "compact",
    "file_of",
    "png",
]

EVENTS = "text/event-stream"
UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

_STREAM = """\
Each question's events carry its round as `id`: `answer` (the Answer with its findings, before any
word), `text` ({"piece"}), `done` (the whole Answer). `error` ends the stream early."""

ANSWER_DOCS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "An Answer (docs/answer.schema.json), a list of them for a list of "
        f"questions, or events where `Accept` is `{EVENTS}`. {_STREAM}",
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"type": "object", "title": "Answer"},
                        {"type": "array", "items": {"type": "object", "title": "Answer"}},
                    ]
                }
            },
            EVENTS: {"schema": {"type": "string"}},
        },
    }
}


def _wants_events(request: Request) -> bool:
    """Whether the client asks for server-sent events."""
    return EVENTS in request.headers.get("accept", "").lower()


async def answered(request: Request, service: Service, asked: Asked, single: bool) -> Response:
    """The response for questions on their way."""
    if _wants_events(request):
        return StreamingResponse(_stream(service, asked), media_type=EVENTS, headers=UNBUFFERED)
    answers = await unless_gone(request, asked.answers())
    values = await service.aside(lambda: [answer_dict(service, answer) for answer in answers])
    rounds = ",".join(map(str, asked.rounds))
    return JSONResponse(values[0] if single else values, headers={"X-MediSee-Round": rounds})


async def _stream(service: Service, asked: Asked) -> AsyncIterator[str]:
    try:
        async for index, event in asked.events():
            yield await _event(service, asked.rounds[index], event)
    except Exception as error:  # noqa: BLE001 - the response has begun: it goes into the stream
        yield _text("error", error_body(error))


async def _event(service: Service, number: int, event: Event) -> str:
    if event[0] == "text":
        return _text("text", {"piece": event[1]}, number)
    if event[0] == "error":
        raise event[1]
    return _text(event[0], await service.aside(answer_dict, service, event[1]), number)


def _text(name: str, data: Any, number: int | None = None) -> str:
    """One server-sent event."""
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {name}\ndata: {compact(data)}\n\n"


def compact(data: Any) -> str:
    """JSON on one line."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def answer_dict(service: Service, answer: Answer) -> dict[str, Any]:
    """The Answer's JSON, with what made it."""
    return {**answer.to_dict(), "provenance": service.identity}


def file_of(service: Service, answer: Answer, kind: str, number: int | None) -> Response:
    """One of an answer's files, or of its finding `number`; ServeError where it has none such."""
    if number is None and kind in _OF_ALL:
        return _OF_ALL[kind](service, answer)
    if kind not in _OF_ONE:
        raise ServeError(404, "no_file", "there is no such file")
    if number is None or number > len(answer.findings):
        raise ServeError(404, "no_file", "the answer has no finding of this number")
    return _OF_ONE[kind](service, replace(answer, findings=[answer.findings[number - 1]]))


def _overlay(service: Service, answer: Answer) -> Response:
    return png(service, np.asarray(answer.overlay()))


def _json(service: Service, answer: Answer) -> Response:
    return JSONResponse(answer_dict(service, answer))


def _mask(service: Service, answer: Answer) -> Response:
    return png(service, answer.findings[0].mask.astype(np.uint8) * 255)


def _similarity(service: Service, answer: Answer) -> Response:
    values = answer.findings[0].similarity
    if values is None:
        raise ServeError(404, "no_file", "this model gives no similarity maps")
    return png(service, _grey(values))


def _nifti(service: Service, answer: Answer) -> Response:
    return Response(_medical(answer, "nifti")["1.mask.nii.gz"], media_type="application/gzip")


def _seg(service: Service, answer: Answer) -> Response:
    return Response(_medical(answer, "seg")["seg.dcm"], media_type="application/dicom")


def _report(service: Service, answer: Answer) -> Response:
    """The SR and the SEG that it refers to: made together, so they travel together."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _medical(answer, "sr").items():
            archive.writestr(name, content)
    return Response(buffer.getvalue(), media_type="application/zip")


def _medical(answer: Answer, name: str) -> dict[str, bytes]:
    """The findings in a format of `medisee.io.FORMATS`."""
    if (reason := why_not(answer.image, name)) is not None:
        raise ServeError(404, "no_file", f"the image {reason}")
    if not answer.findings:
        raise ServeError(404, "no_file", "the answer has no finding")
    check_formats(answer.image, [name])
    return encode_results(answer, [name])


_OF_ALL = {"overlay.png": _overlay, "answer.json": _json, "seg.dcm": _seg, "report.zip": _report}
_OF_ONE = {"mask.png": _mask, "similarity.png": _similarity, "mask.nii.gz": _nifti}

FILE_DOCS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            kind: {}
            for kind in (
                "image/png",
                "application/json",
                "application/dicom",
                "application/gzip",
                "application/zip",
            )
        }
    }
}


def _grey(values: NDArray[Any]) -> NDArray[np.uint8]:
    """A map over its own range in 8 bits."""
    low, high = float(values.min()), float(values.max())
    scaled = (np.asarray(values, np.float32) - low) * (255 / max(high - low, 1e-9))
    return np.rint(scaled).astype(np.uint8)


def png(service: Service, pixels: NDArray[np.uint8]) -> Response:
    """Pixels as a PNG that says what made it."""
    said = PngInfo()
    said.add_text("Software", "MediSee {version}, model {model}, {checksum}".format(
        **service.identity))  # fmt: skip
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=said, compress_level=1)
    return Response(buffer.getvalue(), media_type="image/png")
