"""A backend for Label Studio, which draws what a project's labels name before a person looks.

Each label of the project is asked for, and what is found comes back as a brush or a box, as the
project draws. Images are taken from a folder by their file names: nothing is fetched from the
addresses in tasks. Requests: https://github.com/HumanSignal/label-studio,
label_studio/ml/api_connector.py; results: https://labelstud.io/tags/brushlabels and
https://labelstud.io/tags/rectanglelabels.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np
from fastapi import APIRouter, Depends, Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

import medisee
from medisee.io import read_image
from medisee.structures import Finding, MedicalImage

from .errors import ServeError
from .service import Service, service_of, unless_gone

__all__ = ["PROTECTED", "encode_brush", "router"]

PROTECTED = ("/predict", "/setup")
"""What a token protects beside `/v1/`."""

_KINDS = ("BrushLabels", "RectangleLabels")
_UPLOADED = re.compile("^[0-9a-f]{8}-")

# Not in the OpenAPI document: the shapes are Label Studio's.
router = APIRouter(include_in_schema=False)


class _Lenient(BaseModel):
    """Label Studio sends more (a token of its own, too), which is not looked at."""

    model_config = ConfigDict(extra="ignore")


class _Task(_Lenient):
    data: dict[str, Any]


class _Predict(_Lenient):
    tasks: list[_Task]
    label_config: str


@dataclass(frozen=True)
class _Drawing:
    """How a project draws: kind of region, names of its tags, the field of the image, labels."""

    kind: str
    control: str
    shown: str
    field: str
    labels: tuple[str, ...]


def _folder_of(request: Request) -> Path:
    folder: Path = request.app.state.label_studio
    return folder


Serving = Annotated[Service, Depends(service_of)]
Folder = Annotated[Path, Depends(_folder_of)]


@router.post("/setup")
async def setup(service: Serving) -> dict[str, str]:
    """What answers; asked when a project is connected, and before predictions."""
    return {"model_version": _version(service)}


@router.post("/predict")
async def predict(request: Request, service: Serving, folder: Folder) -> dict[str, Any]:
    """One prediction for each task; without regions where nothing was found."""
    async with service.inbox.receive(request, _Predict) as (asked, _):
        drawing = _drawing(asked.label_config)
        return {
            "results": [
                await unless_gone(request, _prediction(task, drawing, service, folder))
                for task in asked.tasks
            ]
        }


async def _prediction(
    task: _Task, drawing: _Drawing, service: Service, folder: Path
) -> dict[str, Any]:
    path = await service.aside(_find, folder, str(task.data.get(drawing.field, "")))
    read = partial(read_image, path, limits=service.limits.image)
    image = await service.aside(read)
    regions, scores = [], []
    most = service.limits.questions
    for start in range(0, len(drawing.labels), most):
        labels = drawing.labels[start : start + most]
        questions = [f"Show the {label}." for label in labels]
        answers = await service.ask_image(image, questions, explain=False)
        for label, answer in zip(labels, answers, strict=True):
            scores += [finding.score for finding in answer.findings]
            regions += [_region(label, finding, image, drawing) for finding in answer.findings]
    score = float(np.mean(scores)) if scores else 0.0
    return {"result": regions, "score": round(score, 4), "model_version": _version(service)}


def _version(service: Service) -> str:
    return f"{service.model.name} {medisee.__version__}"


def _drawing(config: str) -> _Drawing:
    """The first tag of the labelling configuration that draws what we find."""
    try:
        tags = list(ElementTree.fromstring(config).iter())
    except ElementTree.ParseError:
        raise ServeError(400, "invalid_request", "label_config: is not XML") from None
    images = {tag.get("name"): tag.get("value", "") for tag in tags if tag.tag == "Image"}
    for tag in tags:
        if tag.tag in _KINDS and tag.get("toName") in images:
            shown = tag.get("toName", "")
            labels = tuple(label.get("value", "") for label in tag.iter("Label"))
            return _Drawing(tag.tag, tag.get("name", ""), shown, images[shown].lstrip("$"), labels)
    raise ServeError(400, "invalid_request", f"label_config: needs an Image and {_KINDS[0]}")


def _find(folder: Path, address: str) -> Path:
    """The file of a task's image: an upload (eight digits in front), a local file, an address."""
    parts = urlsplit(address)
    name = unquote(parse_qs(parts.query).get("d", [parts.path])[0]).rsplit("/", 1)[-1]
    for wanted in (name, _UPLOADED.sub("", name)):
        found = [path for path in folder.rglob("*") if path.name == wanted and path.is_file()]
        if len(found) == 1:
            return found[0]
    raise ServeError(404, "no_image", "the folder has no image of this name, or several")


def _region(label: str, finding: Finding, image: MedicalImage, drawing: _Drawing) -> dict[str, Any]:
    kind = drawing.kind.lower()
    drawn = _brush(finding) if kind == "brushlabels" else _rectangle(finding, image)
    return {
        "id": secrets.token_hex(5),
        "type": kind,
        "from_name": drawing.control,
        "to_name": drawing.shown,
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "score": round(finding.score, 4),
        "value": {**drawn, kind: [label]},
    }


def _rectangle(finding: Finding, image: MedicalImage) -> dict[str, float]:
    """In per cent of the image."""
    x1, y1, x2, y2 = (float(edge) for edge in finding.box)
    across, down = 100 / image.width, 100 / image.height
    return {"x": x1 * across, "y": y1 * down, "width": (x2 - x1) * across,
            "height": (y2 - y1) * down, "rotation": 0}  # fmt: skip


def _brush(finding: Finding) -> dict[str, Any]:
    return {"format": "rle", "rle": encode_brush(finding.mask)}


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Label Studio's code of a mask (H, W): thi.ng/rle-pack of four equal channels, as bytes.

    32 bits number of values, 5 bits word size - 1, four run sizes - 1 of 4 bits each; then runs: a
    1, 2 bits for the run size, the run's length - 1, its value. Only the longest size is used.
    """
    values = np.repeat(mask.ravel(), 4)
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), values.size]
    bits = [f"{values.size:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in (3, 4, 8, 16))]
    for first, last in pairwise(edges):
        for start in range(first, last, 1 << 16):
            length = min(last - start, 1 << 16)
            bits.append(f"111{length - 1:016b}{255 * int(values[first]):08b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))
