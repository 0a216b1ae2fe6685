"""The REST interface of MONAI Label, so that its plugins for 3D Slicer and OHIF ask MediSee.

The plugins know models that segment without being asked anything. Ours takes the question as an
option, which both show as a field to type in. What they send and expect:
https://github.com/Project-MONAI/MONAILabel, plugins/slicer and plugins/ohifv3.
"""

from __future__ import annotations

import hmac
import json
import secrets
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response

import medisee
from medisee.io.labelmap import UNNAMED, encode_labels, label_map, labels_of
from medisee.io.volume import VolumeAnswer
from medisee.structures import Answer

from .datastore import FINAL, Datastore, Source
from .errors import ServeError, invalid_request
from .service import Service, service_of, unless_gone
from .volumes import Volumes

__all__ = ["PROTECTED", "router"]

PROTECTED = ("/info/", "/infer/", "/datastore/", "/session/", "/activelearning/", "/auth/token/")
"""What a token protects beside `/v1/`; `/auth/` tells that one is needed."""

_MOST_LABELS = 255
_SERIES_FILES = 10_000
_LONGEST_LOGIN = 4096
_AS_ACQUIRED = "as acquired"

# Not in the OpenAPI document: the shapes are MONAI Label's.
router = APIRouter(include_in_schema=False)


def _datastore_of(request: Request) -> Datastore:
    store: Datastore = request.app.state.datastore
    return store


def _volumes_of(request: Request) -> Volumes:
    volumes: Volumes = request.app.state.volumes
    return volumes


Serving = Annotated[Service, Depends(service_of)]
Store = Annotated[Datastore, Depends(_datastore_of)]
Asking = Annotated[Volumes, Depends(_volumes_of)]


# ---- what there is ---------------------------------------------------------------------------


@router.get("/info/")
async def info(service: Serving, store: Store) -> dict[str, Any]:
    """The model, its labels and options, and the state of the datastore."""
    model = {
        "type": "segmentation",
        "labels": _labels(service),
        "dimension": 3,
        "description": "Shows what a question asks for. Type it under Options.",
        "config": {
            "question": "",
            "slice": "",
            "plane": [_AS_ACQUIRED, "axial", "coronal", "sagittal"],
            "window": "",
        },
    }
    return {
        "name": "MediSee",
        "description": "A research tool, not a medical device.",
        "version": medisee.__version__,
        # Slicer makes an empty segment of each of these; the model's own are enough for OHIF.
        "labels": [],
        "models": {service.model.name: model},
        "trainers": {},
        "strategies": {"first": {"description": "First image without a label", "config": {}}},
        "scoring": {},
        "train_stats": {},
        "datastore": await service.aside(store.status),
    }


def _labels(service: Service) -> dict[str, int]:
    """The number that stands for each target; one more for all others."""
    names = [target.name for target in service.model.info["targets"]][: _MOST_LABELS - 1]
    return {name: number for number, name in enumerate([*names, UNNAMED], start=1)}


# ---- asking ----------------------------------------------------------------------------------


class _Options(BaseModel):
    """The options of /info/ as a plugin sends them back, and the form that it wants; it sends
    more, which means nothing here."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    question: str = ""
    slice: str = ""
    plane: str = ""
    window: str = ""
    result_extension: Literal[".nrrd", ".nii", ".nii.gz"] = ".nii.gz"
    result_compress: bool = True

    @property
    def choices(self) -> dict[str, Any]:
        """The arguments of `read_image`."""
        if self.slice and not (self.slice.isascii() and self.slice.isdigit()):
            raise ServeError(400, "invalid_request", "slice: a number from 0, or nothing")
        plane = None if self.plane in ("", _AS_ACQUIRED) else self.plane
        number = int(self.slice) if self.slice else None
        return {"slice": number, "plane": plane, "window": self.window or None}


@router.post("/infer/{model}")
async def infer(
    model: str,
    request: Request,
    service: Serving,
    store: Store,
    volumes: Asking,
    image: str = "",
    session_id: str = "",
    output: Literal["image", "json", "all"] = "all",
) -> Response:
    """Ask about an image of the datastore, of a session or sent along; the answer's label map.

    `image` gives the file alone, numbered as /info/ says; `all` a form with `params`, which name
    its labels 1, 2..., and the file.
    """
    if model != service.model.name:
        raise ServeError(404, "model_not_found", "there is no model of this name; see /info/")
    async with service.inbox.receive_form(request, files=2) as form:
        options = _options(form)
        source = await _source(form, session_id or image, service, store)
        asked = volumes.ask(source, options.question, options.choices)
        answer = await unless_gone(request, asked)
    if output == "json":
        return JSONResponse({"params": _params(answer, {})})
    if not answer.findings:
        # No picture to give, and the plugins would show nothing at all.
        raise ServeError(404, "nothing_found", answer.text or "nothing was found")
    numbers = _labels(service) if output == "image" else _in_order(answer)
    file = await service.aside(_encoded, answer, numbers, options)
    name = f"medisee{options.result_extension}"
    if output == "image":
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(file, media_type="application/octet-stream", headers=headers)
    return _form_response(_params(answer, numbers), name, file)


def _options(form: FormData) -> _Options:
    try:
        options = _Options.model_validate_json(_text(form, "params"))
    except ValidationError as error:
        raise invalid_request(error.errors()) from None
    if not options.question.strip():
        raise ServeError(400, "invalid_request", "question: type one under Options, then run again")
    return options


async def _source(form: FormData, key: str, service: Service, store: Datastore) -> Source:
    """The image sent along, else the one that was sent before, else that of the folder."""
    if isinstance(form.get("file"), UploadFile):
        return Source((await _file(form, "file"))[1])
    try:
        return store.kept(key)
    except ServeError:
        return await service.aside(store.image, key)


def _in_order(answer: Answer | VolumeAnswer) -> dict[str, int]:
    """1, 2... for the labels that there are: Slicer numbers segments by their place in a list."""
    return {label: number for number, label in enumerate(labels_of(answer), start=1)}


def _encoded(answer: Answer | VolumeAnswer, numbers: dict[str, int], options: _Options) -> bytes:
    known = {label: numbers.get(label, numbers.get(UNNAMED, 0)) for label in labels_of(answer)}
    labels = label_map(answer, known)
    return encode_labels(labels, options.result_extension, options.result_compress)


def _params(answer: Answer | VolumeAnswer, numbers: dict[str, int]) -> dict[str, Any]:
    """What the answer says beside its masks."""
    return {
        "label_names": numbers,
        "question": answer.question,
        "text": answer.text,
        "refusal": None if answer.refusal is None else answer.refusal.value,
        "findings": [
            {"label": finding.label, "score": round(finding.score, 4)}
            for finding in answer.findings
        ],
        "warnings": answer.warnings,
        "model": answer.model,
    }


def _form_response(params: dict[str, Any], name: str, file: bytes) -> Response:
    """A multipart form with the fields `params` and `image`."""
    border = secrets.token_hex(16)
    part = f'--{border}\r\nContent-Disposition: form-data; name="'
    head = (
        f'{part}params"\r\nContent-Type: application/json\r\n\r\n{json.dumps(params)}\r\n'
        f'{part}image"; filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
    )
    body = head.encode() + file + f"\r\n--{border}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={border}")


# ---- the datastore ---------------------------------------------------------------------------


@router.get("/datastore/")
async def contents(
    service: Serving, store: Store, output: Literal["stats", "all"] = "stats"
) -> dict[str, Any]:
    """How many images and labels there are, or all of them by name."""
    if output == "stats":
        return await service.aside(store.status)
    return {"name": "MediSee", "objects": await service.aside(store.contents)}


@router.put("/datastore/")
@router.put("/datastore/image")
async def add_image(
    request: Request, service: Serving, store: Store, image: str | None = None
) -> dict[str, str]:
    """Take an image into memory under a name; it is forgotten like every other."""
    async with service.inbox.receive_form(request, files=1) as form:
        return {"image": store.keep(image or None, [(await _file(form, "file"))[1]])}


@router.get("/datastore/image")
async def image_file(image: str, service: Serving, store: Store) -> Response:
    """An image of the folder that is a single file."""
    source = await service.aside(store.image, image)
    if isinstance(source.data, bytes) or source.data.is_dir():
        raise ServeError(404, "no_file", "the image is a series, which has no single file")
    return FileResponse(source.data, filename=source.data.name)


@router.put("/datastore/label")
async def save_label(
    request: Request, service: Serving, store: Store, image: str, tag: str = FINAL
) -> dict[str, str]:
    """Write a label that somebody submits into the datastore's folder."""
    async with service.inbox.receive_form(request, files=1) as form:
        name, data = await _file(form, "label")
        said = _label_info(_text(form, "params"))
        await service.aside(store.save_label, image, tag or FINAL, name, data, said)
    return {"image": image, "label": image}


@router.get("/datastore/label")
async def label_file(label: str, service: Serving, store: Store, tag: str = FINAL) -> Response:
    """A label that was submitted before."""
    path = await service.aside(store.label, label, tag)
    return FileResponse(path, filename=path.name)


@router.post("/activelearning/{strategy}")
async def next_sample(strategy: str, service: Serving, store: Store) -> dict[str, Any]:
    """The next image to label, whatever the strategy; empty when none is left."""
    return await service.aside(store.next_unlabelled)


def _label_info(params: str) -> dict[str, Any]:
    """Which number of a label stands for what; of all that plugins send, only this is kept."""
    try:
        value = json.loads(params)
        names = {str(each["name"]): int(each["idx"]) for each in value.get("label_info") or ()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ServeError(400, "invalid_request", "params: cannot be read") from None
    return {"params": {"label_names": names}}


# ---- sessions --------------------------------------------------------------------------------


@router.put("/session/")
async def create_session(request: Request, service: Serving, store: Store) -> dict[str, Any]:
    """Take an image, or the files of a series, into memory for a while."""
    async with service.inbox.receive_form(request, files=_SERIES_FILES) as form:
        parts = [part for part in form.getlist("files") if isinstance(part, UploadFile)]
        if not parts:
            raise ServeError(400, "invalid_request", "files: send one or more")
        key = store.keep(None, [await part.read() for part in parts])
    return {"session_id": key, "session_info": _session(key, service)}


@router.get("/session/{key}")
async def show_session(key: str, service: Serving, store: Store) -> dict[str, Any]:
    """That the image is still there."""
    store.kept(key)
    return _session(key, service)


@router.delete("/session/{key}")
async def remove_session(key: str, service: Serving, store: Store) -> dict[str, Any]:
    """Forget the image."""
    store.forget(key)
    return _session(key, service)


def _session(key: str, service: Service) -> dict[str, Any]:
    return {"name": key, "expiry": int(service.limits.session_seconds)}


# ---- the token -------------------------------------------------------------------------------


@router.get("/auth/")
async def needs_token(request: Request) -> dict[str, bool]:
    """Whether a token is needed; Slicer then asks for a name and a password."""
    return {"enabled": request.app.state.token is not None}


@router.post("/auth/token")
async def log_in(request: Request) -> dict[str, str]:
    """The token again for whoever gives it as the password; the name does not matter."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LONGEST_LOGIN:
            raise ServeError(413, "too_large", "the body is too large")
    given = parse_qs(body.decode("latin-1")).get("password", [""])[0]
    token = request.app.state.token
    if token is None or not hmac.compare_digest(given.encode(), token.encode()):
        raise ServeError(401, "no_token", "the password must be the server's token")
    return {"access_token": token, "token_type": "Bearer"}


@router.get("/auth/token/valid")
async def is_valid() -> dict[str, bool]:
    """Reached only with the right token."""
    return {"valid": True}


# ---- parts of a form -------------------------------------------------------------------------


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    return value if isinstance(value, str) and value else "{}"


async def _file(form: FormData, name: str) -> tuple[str, bytes]:
    """Name and bytes of a file."""
    part = form.get(name)
    if not isinstance(part, UploadFile):
        raise ServeError(400, "invalid_request", f"{name}: send it as a file")
    return part.filename or "", await part.read()
