"""The web application: routers, guard and page around one model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

import medisee

from . import ask_api, errors, info_api, label_studio, monai_label, openai_api, page, session_api
from .datastore import Datastore
from .guard import Guard
from .limits import Limits
from .openai_api import ChatRequest
from .requests import AskRequest, OneShotRequest, SessionRequest
from .service import Service
from .volumes import Volumes

__all__ = ["create_app"]

DESCRIPTION = """\
Ask a medical image a question; get masks, boxes and an explanation.

**A research tool, not a medical device.** Images live in memory only and are forgotten; nothing
that is sent here is logged."""


def create_app(
    model: Any,
    limits: Limits | None = None,
    *,
    token: str | None = None,
    hosts: Collection[str] | None = None,
    origins: Collection[str] = (),
    datastore: Path | None = None,
    label_studio_images: Path | None = None,
) -> FastAPI:
    """The ASGI application around a loaded model; `model` follows the predictor's protocol.

    token: what clients must send as `Authorization: Bearer`; None for no protection.
    hosts: names under which the server may be called; None for all.
    origins: pages elsewhere that browsers let call this server (CORS); none by default.
    datastore: folder for the plugins of MONAI Label; without one their interface is not there.
    label_studio_images: folder of the images in Label Studio's tasks; likewise.
    """
    service = Service(model, limits or Limits())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        if datastore is not None:
            app.state.volumes.stop()
            app.state.datastore.clear()
        service.stop()

    app = FastAPI(
        title="MediSee", version=medisee.__version__, description=DESCRIPTION, lifespan=lifespan,
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.service = service
    errors.install(app)
    for api in (ask_api, session_api, openai_api, info_api):
        app.include_router(api.router)
    if datastore is not None:
        app.state.token, app.state.volumes = token, Volumes(service)
        app.state.datastore = Datastore(datastore, service.limits)
        app.include_router(monai_label.router)
    if label_studio_images is not None:
        app.state.label_studio = label_studio_images
        app.include_router(label_studio.router)
    page.mount(app)
    app.add_middleware(Guard, service=service, token=token, hosts=hosts, origins=origins)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["X-MediSee-Round", "Retry-After"],
        )  # fmt: skip
    _document(app)
    return app


def _document(app: FastAPI) -> None:
    """Adds to the OpenAPI document the bodies that we read ourselves."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for kind in (AskRequest, SessionRequest, OneShotRequest, ChatRequest):
                schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(schema.pop("$defs", {}))
                schemas[kind.__name__] = schema
            for operation in (
                each for path in document["paths"].values() for each in path.values()
            ):
                operation["responses"].pop("422", None)  # FastAPI's own; ours are 400
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
        return app.openapi_schema or make()

    app.openapi = openapi  # type: ignore[method-assign]
