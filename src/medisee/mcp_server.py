"""Tools for assistants (Model Context Protocol): ask an image, list targets, describe an image.

An assistant gets what a person gets on the screen: the words, the findings as numbers and the
overlay as a picture. Masks stay behind: no assistant reads run lengths.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from PIL import Image as Picture
from pydantic import Field

import medisee
from medisee.errors import InputError, MediSeeError
from medisee.io import read_image
from medisee.structures import Answer, MedicalImage

__all__ = ["create_server"]

INSTRUCTIONS = """\
Finds anatomy and lesions in medical images. Call `ask` with an image and a question; the answer is
an explanation, findings with boxes (pixels, x1 y1 x2 y2) and scores (how likely it is that the
outline fits), and a picture with the findings drawn in. It may refuse. `describe` tells what an
image is, `targets` what the model was trained to find. A research tool, not a medical device: say
so when you pass its answers on."""

_SOURCE = (
    "Path of a PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI file, of a folder or ZIP archive with a "
    "DICOM series, or example:NAME (example:abdomen-mr)."
)
Source = Annotated[str, Field(description=_SOURCE)]
Base64 = Annotated[str, Field(description="Instead of a path: the file's bytes in base64.")]
Slice = Annotated[
    int | None, Field(ge=0, description="Slice of a volume, from 0. Default: the middle one.")
]
Plane = Annotated[
    Literal["axial", "coronal", "sagittal"] | None, Field(description="Plane of a volume.")
]
Frame = Annotated[int | None, Field(ge=0, description="Frame of a series, from 0.")]
Window = Annotated[
    str | None, Field(description="Grey values to show: CENTRE,WIDTH or a name such as lung.")
]


def create_server(load: Callable[[], Any]) -> MCPServer[Any]:
    """The server; `load` gives the model and is called by the first tool that needs it."""
    # Quiet: its own lines would quote what an assistant sent.
    server: MCPServer[Any] = MCPServer(
        "medisee", version=medisee.__version__, instructions=INSTRUCTIONS, log_level="CRITICAL"
    )
    model = _Model(load)

    @server.tool()
    def ask(
        question: Annotated[str, Field(description="What to show, in plain words, in English.")],
        image: Source = "",
        image_base64: Base64 = "",
        slice: Slice = None,
        plane: Plane = None,
        frame: Frame = None,
        window: Window = None,
    ) -> list[str | Image]:
        """Ask one image, or one slice of a volume, a question.

        Gives the explanation, the answer as JSON, and a picture with the findings drawn in.
        """
        with _clear_errors():
            opened = _read(image, image_base64, slice, plane, frame, window)
            answer = model.ask(opened, question)
            return [answer.text, json.dumps(_without_masks(answer)), _png(answer.overlay())]

    @server.tool()
    def targets(
        search: Annotated[str, Field(description="Only names that hold this text.")] = "",
    ) -> list[dict[str, Any]]:
        """What the model was trained to find, with the test Dice (0 to 1, null: not measured).

        Other things can be asked for too, but nobody knows how well they are found.
        """
        with _clear_errors():
            known = model.loaded.info["targets"]
            return [asdict(target) for target in known if search.lower() in target.name.lower()]

    @server.tool()
    def describe(
        image: Source = "",
        image_base64: Base64 = "",
        slice: Slice = None,
        plane: Plane = None,
        frame: Frame = None,
        window: Window = None,
    ) -> list[str | Image]:
        """What an image is: size, modality, spacing, orientation, slices; and how it looks."""
        with _clear_errors():
            opened = _read(image, image_base64, slice, plane, frame, window)
            return [json.dumps(_facts(opened)), _png(Picture.fromarray(opened.display))]

    return server


class _Model:
    """The model, loaded on first use and asked by one tool at a time: they run in threads."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load, self._lock = load, threading.Lock()

    @cached_property
    def loaded(self) -> Any:
        """The model itself."""
        return self._load()

    def ask(self, image: MedicalImage, question: str) -> Answer:
        """One answer."""
        with self._lock:
            answer: Answer = self.loaded.open(image).ask(question)
            return answer


def _read(image: str, image_base64: str, slice: int | None, plane: str | None,
          frame: int | None, window: str | None) -> MedicalImage:  # fmt: skip
    if bool(image) == bool(image_base64):
        raise InputError("name one image: a path in image, or the file in image_base64")
    source = image or _decoded(image_base64)
    return read_image(source, slice=slice, plane=plane, frame=frame, window=window)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text,
                                validate=True)  # fmt: skip
    except (binascii.Error, ValueError):
        raise InputError("image_base64: is not base64") from None


def _without_masks(answer: Answer) -> dict[str, Any]:
    """The Answer's JSON; run lengths say nothing to an assistant."""
    value = answer.to_dict()
    for finding in value["findings"]:
        del finding["mask"]
    return value


def _facts(image: MedicalImage) -> dict[str, Any]:
    """What is known of an image; nothing of the patient is in it."""
    orientation = image.orientation
    return {
        "source": image.source,
        "width": image.width,
        "height": image.height,
        "modality": image.modality,
        "spacing_mm": image.spacing,
        "orientation": orientation and {"left": orientation.left, "top": orientation.top},
        "plane": orientation and orientation.plane,
        "places": {name: {"shown": at, "of": count} for name, (at, count) in image.places.items()},
        "notes": image.notes,
    }


def _png(picture: Picture.Image) -> Image:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return Image(data=buffer.getvalue(), format="png")


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What was wrong goes to the assistant in one line; a fault of ours keeps its text."""
    try:
        yield
    except MediSeeError as error:
        raise ToolError(str(error)) from None
    except OSError as error:
        raise ToolError(error.strerror or type(error).__name__) from None
