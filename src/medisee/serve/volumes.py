"""Whole volumes through the server's one model: slice by slice, among the questions of others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLongError
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from medisee.io import holds_volume, open_volume, read_image
from medisee.io.volume import VolumeAnswer
from medisee.questions import check_question
from medisee.structures import Answer, MedicalImage
from medisee.volume import ask_volume

from .datastore import Source
from .errors import ServeError
from .service import Service

__all__ = ["Volumes"]


class Volumes:
    """Asks images of any kind, one volume at a time; a few more may wait."""

    def __init__(self, service: Service) -> None:
        self._service, self._limits = service, service.limits
        self._pool = ThreadPoolExecutor(1, "medisee-volumes")
        self._asked = 0

    def stop(self) -> None:
        """Begin no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def ask(
        self, source: Source, question: str, choices: dict[str, Any]
    ) -> Answer | VolumeAnswer:
        """The answer about a volume, or about an image or the slice that `choices` name.

        choices: as `read_image` takes them. Raises InputError or ServeError.
        """
        check_question(question)
        choices = {**choices, "series": source.series, "limits": self._limits.image}
        if choices["slice"] is None and await self._service.aside(holds_volume, source.data):
            return await self._ask_volume(source, question, choices)
        read = partial(read_image, source.data, **choices)
        image = _called("image", await self._service.aside(read))
        [answer] = await self._service.ask_image(image, [question], True)
        return answer

    async def _ask_volume(
        self, source: Source, question: str, choices: dict[str, Any]
    ) -> VolumeAnswer:
        if self._asked >= self._limits.volumes:
            raise ServeError(503, "full", "other volumes are waiting; try again later")
        loop, patience = asyncio.get_running_loop(), _Patience(self._limits.volume_seconds)
        model = _Queued(self._service, loop)
        cut = {name: value for name, value in choices.items() if name != "slice"}

        def work() -> VolumeAnswer:
            with open_volume(source.data, **cut) as volume:
                source.check(volume)
                [answer] = ask_volume(model, volume, [question], progress=patience.check)
                return answer

        self._asked += 1
        try:
            return await loop.run_in_executor(self._pool, work)
        finally:  # also when the client has gone
            self._asked -= 1
            patience.end()


def _called(name: str, image: MedicalImage) -> MedicalImage:
    """The image without the name of its file, which may be a patient's."""
    return replace(image, source=name)


class _Patience:
    """Ends the work on a volume between two slices."""

    def __init__(self, seconds: float) -> None:
        self._until, self._gone = time.monotonic() + seconds, threading.Event()

    def end(self) -> None:
        """Nobody waits any more."""
        self._gone.set()

    def check(self, done: int, total: int) -> None:
        """Raises ServeError where it is time to stop."""
        if self._gone.is_set() or time.monotonic() > self._until:
            raise ServeError(504, "too_long", f"stopped after {done} of {total} slices: too long")


@dataclass(frozen=True)
class _Queued:
    """The served model as `ask_volume` takes one; every slice waits its turn."""

    service: Service
    loop: asyncio.AbstractEventLoop

    def open(self, image: MedicalImage) -> _QueuedImage:
        """The image, about which the model is asked later."""
        return _QueuedImage(self, image)

    def wait(self, work: Coroutine[Any, Any, list[Answer]]) -> list[Answer]:
        """The result of what runs in the server's loop."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(2 * self.service.limits.request_seconds)
        except TooLongError:  # the loop has ended
            raise ServeError(503, "stopping", "the server is stopping") from None


@dataclass(frozen=True)
class _QueuedImage:
    model: _Queued
    image: MedicalImage

    def ask(self, questions: list[str], explain: bool = True) -> list[Answer]:
        """One answer for each question."""
        return self.model.wait(self.model.service.ask_image(self.image, questions, explain))
