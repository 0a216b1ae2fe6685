"""What all protocols share: images opened, questions asked, within the limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

import medisee
from medisee.entities import load_entities
from medisee.io import read_image
from medisee.questions import check_question
from medisee.quiet import silence_readers
from medisee.structures import Answer, MedicalImage

from .errors import ServeError
from .limits import Limits
from .metrics import Metrics
from .requests import Inbox, SessionRequest
from .sessions import Held, SessionStore
from .sharing import Sharing
from .suggestions import suggest
from .worker import Event, Ticket, Worker

__all__ = ["Asked", "Service", "service_of", "unless_gone"]

EXAMPLE = "example:"

Result = TypeVar("Result")


def service_of(request: Request) -> Service:
    """The service of the app that got the request."""
    service: Service = request.app.state.service
    return service


class Service:
    """A loaded model and all that the server holds around it."""

    def __init__(self, model: Any, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self.store = SessionStore[Held](limits)
        self.inbox = Inbox(limits)
        self.sharing = Sharing()
        self.worker = Worker(model, limits, lambda size: self.metrics.batches.observe(size))
        self.identity = {
            "model": model.name,
            "version": medisee.__version__,
            "checksum": f"sha256:{model.checksum}",
        }
        self.metrics = Metrics(self)
        self.started = int(time.time())

    def start(self) -> None:
        """Begin to work."""
        silence_readers()
        self.worker.start()
        # Two: a large image must not keep small ones waiting, and memory stays bounded.
        self._pool = ThreadPoolExecutor(2, "medisee-images")
        self._pool.submit(load_entities)  # read once; the first client need not wait for it

    def stop(self) -> None:
        """Finish what has begun, forget all images."""
        self.worker.stop(self.limits.patience_seconds)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.store.clear()

    async def aside(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run what takes its time (images, pictures) in a thread."""
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self._pool, work, *arguments)
        return await self._in_time(done)

    async def open(self, asked: SessionRequest, data: bytes | None) -> Held:
        """Read the image and let the model look at it.

        Raises InputError or ServeError.
        """
        if (data is None) == (asked.example is None):
            raise ServeError(400, "invalid_request", "image: send one, or name an example")
        name = asked.example and asked.example.removeprefix(EXAMPLE)
        source = data if data is not None else f"{EXAMPLE}{name}"
        held = Held(await self._session(source, asked.choices), self.limits)
        held.suggestions = await self.aside(suggest, self.model, held.image, name)
        return held

    async def _session(self, source: bytes | str, choices: dict[str, Any]) -> Any:
        """The model's session about an image; the same for all who send it at the same time."""

        async def look() -> Any:
            image = await self.aside(self._read, source, choices)
            return await self._in_time(self.worker.open(image))

        if self.limits.batch == 1:
            return await look()
        key = await self.aside(self.sharing.key, source, choices)
        return await self.sharing.get(key, look)

    def _read(self, source: bytes | str, choices: dict[str, Any]) -> MedicalImage:
        return read_image(source, limits=self.limits.image, **choices)

    async def ask_image(
        self, image: MedicalImage, questions: Sequence[str], explain: bool
    ) -> list[Answer]:
        """Answers about an image that was read before and is not kept; as `open` and `ask`."""
        session = await self._in_time(self.worker.open(image))
        return await self.ask(Held(session, self.limits), questions, explain, ()).answers()

    def ask(
        self,
        held: Held,
        questions: Sequence[str],
        explain: bool,
        history: Sequence[tuple[str, str]] | None = None,
    ) -> Asked:
        """Queue questions about an open image, each read with its finished rounds or `history`.

        Raises InputError for what is no question, ServeError where the queue is full.
        """
        if len(questions) > self.limits.questions:
            most = self.limits.questions
            raise ServeError(400, "invalid_request", f"question: at most {most} at a time")
        checked = [check_question(question) for question in questions]
        rounds = held.history if history is None else _checked(history)
        asked = Asked(held, checked, explain, rounds, self)
        self.worker.ask(asked.tickets)
        asked.number()
        return asked

    async def _in_time(self, work: Any) -> Any:
        try:
            return await asyncio.wait_for(work, self.limits.request_seconds)
        except asyncio.TimeoutError:
            raise _too_long() from None


class Asked:
    """The questions of one request on their way through the model.

    rounds: their numbers in the session.
    """

    def __init__(
        self,
        held: Held,
        questions: Sequence[str],
        explain: bool,
        history: Sequence[tuple[str, str]],
        service: Service,
    ) -> None:
        self._held, self._service = held, service
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._deadline = time.monotonic() + service.limits.request_seconds
        self.rounds: list[int] = []
        self.tickets = [
            Ticket(held.session, question, explain, history, self._listener(index))
            for index, question in enumerate(questions)
        ]

    def number(self) -> None:
        """Give the questions their rounds, once they have found room."""
        self.rounds = [self._held.count() for _ in self.tickets]

    async def events(self) -> AsyncGenerator[tuple[int, Event], None]:
        """Index of a question and what comes of it; leaving early stops the work.

        Raises what went wrong in the model; ServeError where it takes too long.
        """
        left = len(self.tickets)
        try:
            while left:
                index, event = await self._next()
                if event[0] == "error":
                    raise event[1]
                if event[0] == "done":
                    left -= 1
                    self._finish(index, event[1])
                yield index, event
        finally:
            self.cancel()

    async def answers(self) -> list[Answer]:
        """The whole answers, in the order of the questions."""
        done = {i: event[1] async for i, event in self.events() if event[0] == "done"}
        return [done[index] for index in range(len(self.tickets))]

    def cancel(self) -> None:
        """Nobody waits any more."""
        for ticket in self.tickets:
            ticket.cancelled = True

    async def _next(self) -> tuple[int, Event]:
        try:
            left = max(self._deadline - time.monotonic(), 0)
            return await asyncio.wait_for(self._events.get(), left)
        except asyncio.TimeoutError:
            raise _too_long() from None

    def _finish(self, index: int, answer: Answer) -> None:
        self._held.keep(self.rounds[index], answer)
        self._service.metrics.count_answer(answer)

    def _listener(self, index: int) -> Callable[[Event], None]:
        def tell(event: Event) -> None:
            try:
                self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
            except RuntimeError:  # the loop is gone, and the client with it
                self.tickets[index].cancelled = True

        return tell


async def unless_gone(request: Request, work: Any) -> Any:
    """The result of `work`; where the client leaves before, the work stops.

    The request's body must have been read.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientDisconnect
    finally:
        for task in tasks:
            task.cancel()


def _checked(history: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Rounds that a client sent along, each as short as a question must be."""
    return [(check_question(question), check_question(answer)) for question, answer in history]


def _too_long() -> ServeError:
    return ServeError(504, "too_long", "the answer took too long")
