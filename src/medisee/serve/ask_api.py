"""One request for an image and questions about it; nothing is kept afterwards."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from .answering import ANSWER_DOCS, answered
from .errors import RESPONSES
from .requests import OneShotRequest, body_docs
from .service import Service, service_of, unless_gone

__all__ = ["router"]

router = APIRouter(tags=["ask"], responses=RESPONSES)


@router.post("/v1/ask", openapi_extra=body_docs(OneShotRequest), responses=ANSWER_DOCS,
             response_model=None)  # fmt: skip
async def ask(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """Send an image and one question, or several (`question` repeated, or a JSON list)."""
    async with service.inbox.receive(request, OneShotRequest) as (body, data):
        held = await unless_gone(request, service.open(body, data))
    asked = service.ask(held, body.questions, body.explain)
    return await answered(request, service, asked, isinstance(body.question, str))
