"""Systems that run in a process of their own, in the user's environment: JSON lines in and out.

For each question the command reads one line and writes one line:

    {"image": "/tmp/.../1.png", "text": "liver"}
    {"mask": {"size": [H, W], "counts": "..."}, "box": [x1, y1, x2, y2], "score": 0.9, "text": ""}

All of the reply's fields are optional; `{}` says that there is nothing. The mask is a COCO RLE on
the image's grid, the box xyxy px. Whatever else the command has to say goes to standard error.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any

from PIL import Image

from medisee.errors import ModelError
from medisee.evaluation.systems import Setup
from medisee.evaluation.systems.common import Found, OneByOne
from medisee.structures import MedicalImage, decode_rle

__all__ = ["Worker", "build"]


def build(setup: Setup, system: str, command: str) -> OneByOne:
    """A system behind a command, asked with the question itself."""
    return OneByOne(system, Worker(command))


class Worker:
    """One running command; started with the first question, ended with this object."""

    def __init__(self, command: str) -> None:
        self.command = command
        self._process: subprocess.Popen[str] | None = None
        self._image: MedicalImage | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="medisee-")

    def __call__(self, image: MedicalImage, phrase: str) -> Found:
        """The command's reply; ModelError when it dies, or writes what is no reply."""
        path = self._write(image)
        process = self._running()
        assert process.stdin is not None and process.stdout is not None  # both are pipes
        try:
            process.stdin.write(json.dumps({"image": str(path), "text": phrase}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ModelError(f"{self._name} ended with code {process.wait()}; see what it wrote")
        return self._read(line, image)

    @property
    def _name(self) -> str:
        return f"the command '{shlex.split(self.command)[0]}'"

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            try:
                self._process = subprocess.Popen(
                    shlex.split(self.command), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    text=True, encoding="utf-8",
                )  # fmt: skip
            except OSError as error:
                raise ModelError(f"{self._name} cannot be started: {error.strerror}") from error
            weakref.finalize(self, _end, self._process)
        return self._process

    def _write(self, image: MedicalImage) -> Path:
        """The image as the command reads it; one file, written when another image comes."""
        path = Path(self._folder.name) / "image.png"
        if self._image is not image:
            Image.fromarray(image.display).save(path)
            self._image = image
        return path

    def _read(self, line: str, image: MedicalImage) -> Found:
        try:
            reply: dict[str, Any] = json.loads(line)
            mask = decode_rle(reply["mask"]) if reply.get("mask") else None
            box = tuple(float(edge) for edge in reply["box"]) if reply.get("box") else None
            if box is not None and len(box) != 4:
                raise ValueError("box")
            score, text = float(reply.get("score", 0.5)), str(reply.get("text", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{self._name} wrote a line that is no reply") from error
        if mask is not None and mask.shape != (image.height, image.width):
            raise ModelError(f"{self._name} gave a mask of another size than the image")
        return Found(mask, box, score, text)


def _end(process: subprocess.Popen[str]) -> None:
    """Closing its input tells the command that it is done; one that does not hear is stopped."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
