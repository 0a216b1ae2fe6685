"""A small server with the interface that the page uses, and with faults on demand.

A question decides what happens: with "unplug" the connection breaks off in mid-stream, "full"
answers 503, "forgotten" 404, "slowly" takes its time. An image named `full.png` finds no room.
"""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image

from medisee.errors import MediSeeError
from medisee.examples import list_examples
from medisee.io import read_image
from medisee.serve.page import mount

SUGGESTIONS = [
    "Which large organ here makes bile?",
    "Where are both kidneys?",
    "Which vessel carries blood down to the legs?",
]


def stub(model: Any, pace: float = 0.0) -> FastAPI:
    """The app; `pace` is the pause between pieces of text in seconds."""
    app = FastAPI()
    sessions: dict[str, Any] = {}
    answers: dict[str, list[Any]] = {}

    @app.get("/v1/examples")
    def examples() -> list[dict[str, str]]:
        return [
            {k: getattr(e, k) for k in ("name", "description", "question", "modality")}
            for e in list_examples()
        ]

    @app.post("/v1/sessions", status_code=201)
    async def create(request: Request) -> Response:
        try:
            image = await _image(request)
        except MediSeeError as error:
            return _error(400, "bad_image", str(error))
        if image.source == "full":
            return _error(503, "full", "too many images are open; try again", {"Retry-After": "2"})
        key = f"s{len(sessions)}"
        sessions[key] = model.open(image)
        answers[key] = []
        described = {
            "width": image.width,
            "height": image.height,
            "modality": image.modality,
            "spacing_mm": image.spacing,
            "orientation": image.orientation
            and {"left": image.orientation.left, "top": image.orientation.top},
            "notes": image.notes,
        }
        body = {"id": key, "image": described, "suggestions": SUGGESTIONS}
        return JSONResponse(body, status_code=201)

    @app.get("/v1/sessions/{key}/image.png")
    def picture(key: str) -> Response:
        return _png(sessions[key].image.display)

    @app.delete("/v1/sessions/{key}", status_code=204)
    def forget(key: str) -> None:
        return None

    @app.post("/v1/sessions/{key}/ask")
    async def ask(key: str, request: Request) -> Response:
        question = (await request.json())["question"]
        if "full" in question:
            return _error(503, "busy", "the queue is full", {"Retry-After": "2"})
        if "forgotten" in question and len(sessions) == 1:
            return _error(404, "no_session", "there is no such session")
        return StreamingResponse(stream(key, question), media_type="text/event-stream")

    async def stream(key: str, question: str) -> AsyncIterator[str]:
        if "slowly" in question:
            await asyncio.sleep(max(pace, 0.5) * 6)
        pieces = iter(sessions[key].stream(question))
        answer = next(pieces)
        yield _event("answer", answer.to_dict())
        for number, piece in enumerate(pieces):
            await asyncio.sleep(pace)
            if "unplug" in question and number == 3:
                raise ConnectionResetError
            yield _event("text", {"piece": piece})
        answers[key].append(answer)
        yield _event("done", answer.to_dict())

    @app.get("/v1/sessions/{key}/files/{name}")
    def file(key: str, name: str, round: int) -> Response:
        answer = answers[key][round - 1]
        if name == "answer.json":
            return JSONResponse(answer.to_dict())
        if name == "overlay.png":
            return _png(np.asarray(answer.overlay()))
        kind, number = name.removesuffix(".png").split("-")
        finding = answer.findings[int(number) - 1]
        if kind == "mask":
            return _png(finding.mask.astype(np.uint8) * 255)
        similarity = finding.similarity
        low, high = similarity.min(), similarity.max()
        return _png(((similarity - low) / max(high - low, 1e-9) * 255).astype(np.uint8))

    mount(app)
    return app


async def _image(request: Request) -> Any:
    if request.headers["content-type"].startswith("application/json"):
        return read_image((await request.json())["example"])
    form = await request.form()
    upload: Any = form["image"]
    if upload.filename == "full.png":
        from dataclasses import replace

        return replace(read_image(await upload.read()), source="full")
    return read_image(await upload.read())


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    body = {"error": {"code": code, "message": message}}
    return JSONResponse(body, status_code=status, headers=headers)


def _png(pixels: Any) -> Response:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Response(buffer.getvalue(), media_type="image/png")


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The app on a free port of this machine, in a thread; its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
