"""The interface of OpenAI's chat completions, for the many programs that speak it.

The last user message is the question, the last image of the conversation what it is about; earlier
messages are its rounds. Findings travel in the extra field `medisee`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from .answering import EVENTS, UNBUFFERED, answer_dict, compact
from .errors import RESPONSES, ServeError, error_body
from .requests import SessionRequest, body_docs, decode_base64
from .service import Asked, Service, service_of, unless_gone

__all__ = ["ChatRequest", "router"]

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"], responses=RESPONSES)

Serving = Annotated[Service, Depends(service_of)]


class _Lenient(BaseModel):
    """Clients send settings of other models along; what has no meaning here is let through."""

    model_config = ConfigDict(extra="ignore")


class ImageUrl(_Lenient):
    """A picture as a data URL; addresses are never fetched."""

    url: str = Field(examples=["data:image/png;base64,iVBORw0KGgo="])


class TextPart(_Lenient):
    """Words."""

    type: Literal["text"]
    text: str


class ImagePart(_Lenient):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Lenient):
    """One message; those of other roles than user and assistant are not read."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None

    @property
    def words(self) -> str:
        """The text of all parts."""
        if not isinstance(self.content, list):
            return self.content or ""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> list[str]:
        """The URLs of all pictures."""
        parts = self.content if isinstance(self.content, list) else []
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]


class ChatRequest(_Lenient):
    """A conversation about an image. Temperature and its kin change nothing: answers are exact."""

    model: str = Field(max_length=512)
    messages: list[Message] = Field(min_length=1, max_length=64)
    stream: bool = False
    n: Literal[1] | None = None

    @property
    def question(self) -> str:
        """The last message, which must be a user's and say something."""
        last = self.messages[-1]
        if last.role != "user" or not last.words.strip():
            raise ServeError(400, "invalid_request", "messages: the last one must be a question")
        return last.words

    @property
    def history(self) -> list[tuple[str, str]]:
        """Earlier questions, each with the reply that follows it."""
        pairs = zip(self.messages, self.messages[1:], strict=False)
        return [
            (first.words, second.words)
            for first, second in pairs
            if (first.role, second.role) == ("user", "assistant") and first.words and second.words
        ]

    @property
    def picture(self) -> bytes:
        """The file of the last picture."""
        urls = [url for message in self.messages for url in message.images]
        if not urls:
            raise ServeError(400, "invalid_request", "messages: no image_url part holds an image")
        head, comma, data = urls[-1].partition(",")
        if not (head.startswith("data:") and head.endswith(";base64") and comma):
            raise ServeError(
                400, "invalid_request", "image_url: only data URLs in base64; none is fetched"
            )
        return decode_base64(data)


class ModelInfo(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "medisee"


class ModelList(BaseModel):
    """The models."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


@router.get("/models")
async def models(service: Serving) -> ModelList:
    """The model that answers."""
    return ModelList(data=[ModelInfo(id=service.model.name, created=service.started)])


@router.get("/models/{model:path}")
async def model(model: str, service: Serving) -> ModelInfo:
    """One model."""
    _check_name(model, service)
    return ModelInfo(id=model, created=service.started)


def _check_name(name: str, service: Service) -> None:
    if name != service.model.name:
        raise ServeError(404, "model_not_found", "there is no model of this name; see /v1/models")


@router.post("/chat/completions", openapi_extra=body_docs(ChatRequest), response_model=None)
async def complete(request: Request, service: Serving) -> Response:
    """A question about the last image of the conversation."""
    async with service.inbox.receive(request, ChatRequest) as (body, _):
        _check_name(body.model, service)
        question = body.question
        held = await unless_gone(request, service.open(SessionRequest(), body.picture))
    asked = service.ask(held, [question], True, body.history)
    completion = _Completion(service, asked)
    if body.stream:
        return StreamingResponse(completion.chunks(), media_type=EVENTS, headers=UNBUFFERED)
    [answer] = await unless_gone(request, asked.answers())
    found = await service.aside(answer_dict, service, answer)
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    return JSONResponse(completion.value("chat.completion", "message", message, "stop", found))


class _Completion:
    """One completion in OpenAI's words."""

    def __init__(self, service: Service, asked: Asked) -> None:
        self._service, self._asked = service, asked
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.model.name,
            "system_fingerprint": service.identity["checksum"],
        }

    def value(
        self, kind: str, part: str, content: Any, finish: str | None = None, found: Any = None
    ) -> dict[str, Any]:
        """A completion or a chunk of one; `found` is the Answer's JSON."""
        choice = {"index": 0, part: content, "logprobs": None, "finish_reason": finish}
        extra = {} if found is None else {"medisee": found}
        return {**self._head, "object": kind, "choices": [choice], **extra}

    async def chunks(self) -> AsyncIterator[str]:
        """Server-sent events: findings first, then words, then the whole Answer."""
        try:
            async for _, event in self._asked.events():
                if event[0] == "text":
                    yield self._chunk({"content": event[1]})
                elif event[0] != "error":
                    found = await self._service.aside(answer_dict, self._service, event[1])
                    first = event[0] == "answer"
                    delta = {"role": "assistant", "content": ""} if first else {}
                    yield self._chunk(delta, None if first else "stop", found)
            yield "data: [DONE]\n\n"
        except Exception as error:  # noqa: BLE001 - the response has begun: it goes into the stream
            yield f"data: {compact(error_body(error))}\n\n"

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, found: Any = None) -> str:
        value = self.value("chat.completion.chunk", "delta", delta, finish, found)
        return f"data: {compact(value)}\n\n"
