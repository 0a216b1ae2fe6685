"""Sessions: an image is sent once and asked about many times."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from medisee.io import FORMATS, why_not
from medisee.structures import Orientation

from .answering import ANSWER_DOCS, FILE_DOCS, answered, file_of, png
from .errors import RESPONSES, ServeError
from .requests import AskRequest, SessionRequest, body_docs
from .service import Service, service_of, unless_gone
from .sessions import Held

__all__ = ["router"]

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], responses=RESPONSES)

_FILE = re.compile(r"([a-z]{1,12})(?:-([1-9][0-9]{0,2}))?\.(png|json|nii\.gz|dcm|zip)")

Key = Annotated[str, Path(alias="session", max_length=64)]
Serving = Annotated[Service, Depends(service_of)]


class ImageInfo(BaseModel):
    """What is known of an image; never who the patient is."""

    width: int
    height: int
    modality: str | None
    spacing_mm: tuple[float, float] | None = Field(description="Of rows, then of columns.")
    orientation: dict[str, str] | None = Field(description="Directions at the left and top edge.")
    plane: str | None
    slice: int | None = Field(description="Which slice of the file, from 0.")
    slices: int | None
    frame: int | None
    frames: int | None
    grey: bool = Field(description="Whether a window can be chosen.")
    values: tuple[float, float] | None = Field(description="Lowest and highest grey value.")
    notes: list[str] = Field(description="What the reader decided: slice, frame, window.")
    formats: dict[str, str | None] = Field(
        description="Medical formats of results: null where they can be had, else why not."
    )


class SessionInfo(BaseModel):
    """An open image."""

    id: str
    expires_in: int = Field(description="Seconds that an unused session is kept.")
    rounds: int = Field(description="Questions asked so far.")
    image: ImageInfo
    suggestions: list[str] = Field(description="Questions to try.")
    provenance: dict[str, str]


def _describe(held: Held, service: Service) -> SessionInfo:
    image = held.image
    orientation = image.orientation
    slices, frames = (image.places.get(name, (None, None)) for name in ("slice", "frame"))
    grey = image.pixels.ndim == 2
    return SessionInfo(
        id=held.id,
        expires_in=int(service.limits.session_seconds),
        rounds=held.rounds,
        image=ImageInfo(
            width=image.width,
            height=image.height,
            modality=image.modality,
            spacing_mm=image.spacing,
            orientation=_edges(orientation),
            plane=None if orientation is None else orientation.plane,
            slice=slices[0],
            slices=slices[1],
            frame=frames[0],
            frames=frames[1],
            grey=grey,
            values=_range(image.pixels) if grey else None,
            notes=list(image.notes),
            formats={name: why_not(image, name) for name in FORMATS},
        ),
        suggestions=held.suggestions,
        provenance=service.identity,
    )


def _edges(orientation: Orientation | None) -> dict[str, str] | None:
    """What of the patient lies at the picture's left and top edges, where the file says so."""
    return None if orientation is None else {"left": orientation.left, "top": orientation.top}


def _range(pixels: Any) -> tuple[float, float] | None:
    import numpy as np

    finite = pixels[np.isfinite(pixels)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


@router.post("", status_code=201, openapi_extra=body_docs(SessionRequest))
async def create(request: Request, service: Serving) -> SessionInfo:
    """Send an image (multipart field `image`), or name an example; ask about it afterwards."""
    async with service.inbox.receive(request, SessionRequest) as (asked, data):
        held = await unless_gone(request, service.open(asked, data))
    service.store.add(held)
    return await service.aside(_describe, held, service)


@router.get("/{session}")
async def show(key: Key, service: Serving) -> SessionInfo:
    """What is known of an open image."""
    return await service.aside(_describe, service.store.get(key), service)


@router.delete("/{session}", status_code=204)
async def forget(key: Key, service: Serving) -> None:
    """Forget the image and all that was asked about it."""
    service.store.remove(key)


@router.get("/{session}/image.png", response_class=Response,
            responses={200: {"content": {"image/png": {}}}})  # fmt: skip
async def picture(key: Key, service: Serving) -> Response:
    """The image as it is shown, in 8 bits and with the pixels that boxes and masks count in."""
    return await service.aside(png, service, service.store.get(key).image.display)


@router.post("/{session}/ask", openapi_extra=body_docs(AskRequest), responses=ANSWER_DOCS,
             response_model=None)  # fmt: skip
async def ask(key: Key, request: Request, service: Serving) -> Response:
    """Ask about an open image; earlier rounds of the session are read along."""
    held = service.store.get(key)
    async with service.inbox.receive(request, AskRequest) as (body, _):
        pass
    asked = service.ask(held, body.questions, body.explain)
    return await answered(request, service, asked, isinstance(body.question, str))


@router.get(
    "/{session}/files/{name}",
    response_class=Response,
    responses=FILE_DOCS,
)
async def file(
    key: Key,
    service: Serving,
    name: Annotated[str, Path(max_length=32, pattern=f"^{_FILE.pattern}$")],
    round: Annotated[int | None, Query(ge=1, le=1_000_000)] = None,
) -> Response:
    """Of a round (by default the last): overlay.png, mask-N.png, similarity-N.png, answer.json.

    And in the terms of the image's file, where its `formats` say so: mask-N.nii.gz, seg.dcm, and
    report.zip with an SR and the SEG that it refers to.
    """
    held = service.store.get(key)
    match = _FILE.fullmatch(name)
    if match is None:
        raise ServeError(404, "no_file", "there is no such file")
    number = int(match[2]) if match[2] else None
    answer = await service.aside(held.answer, round)
    return await service.aside(file_of, service, answer, f"{match[1]}.{match[3]}", number)
