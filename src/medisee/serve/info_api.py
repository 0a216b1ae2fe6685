"""What the server is: health, metrics, examples, models."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from starlette.responses import Response

from medisee.examples import list_examples

from .errors import RESPONSES
from .metrics import CONTENT_TYPE_LATEST
from .service import Service, service_of

__all__ = ["router"]

router = APIRouter(tags=["server"])

Serving = Annotated[Service, Depends(service_of)]


class Health(BaseModel):
    """That the server is there, and what answers."""

    status: str
    model: str
    version: str
    checksum: str
    waiting: int
    sessions: int


class ExampleInfo(BaseModel):
    """A built-in image to try; post its name to /v1/sessions."""

    name: str
    description: str
    question: str
    modality: str


@router.get("/health")
async def health(service: Serving) -> Health:
    """Answers as long as the server works; needs no token."""
    return Health(
        status="ok",
        **service.identity,
        waiting=service.worker.waiting,
        sessions=len(service.store),
    )


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: Serving) -> Response:
    """Counts and durations for Prometheus."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/examples", responses=RESPONSES)
async def examples() -> list[ExampleInfo]:
    """Real images that come with the software."""
    return [
        ExampleInfo(
            name=e.name, description=e.description, question=e.question, modality=e.modality
        )
        for e in list_examples()
    ]


@router.get("/v1/limits", responses=RESPONSES)
async def limits(service: Serving) -> dict[str, Any]:
    """What the server takes on."""
    from dataclasses import asdict

    return asdict(service.limits)
