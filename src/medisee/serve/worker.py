"""The one thread that owns the model: it opens images and answers questions, in batches.

Questions about the same image that wait at the same time go through the model together, where the
model can do that without changing an answer. Each is read with the rounds that were complete when
it came, so the company changes nothing there either.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from medisee.structures import Answer, MedicalImage

from .errors import ServeError
from .limits import Limits

__all__ = ["Ticket", "Worker"]

Event = (
    tuple[Literal["answer"], Answer]
    | tuple[Literal["text"], str]
    | tuple[Literal["done"], Answer]
    | tuple[Literal["error"], BaseException]
)
"""What comes of a question, in this order: its Answer with the findings, its words piece by piece,
the whole Answer; an error takes the place of what is missing."""


@dataclass(eq=False)
class Ticket:
    """One question on its way through the model.

    history: the rounds that it is read with. tell: takes its events, in the worker's thread.
    cancelled: set when nobody waits any more.
    """

    session: Any
    question: str
    explain: bool
    history: Sequence[tuple[str, str]]
    tell: Callable[[Event], None]
    cancelled: bool = False
    came: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class _Opening:
    """An image on its way through the encoder."""

    image: MedicalImage
    done: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop

    def tell(self, result: Any, error: BaseException | None) -> None:
        def settle() -> None:
            if self.done.done():
                return
            if error is None:
                self.done.set_result(result)
            else:
                self.done.set_exception(error)

        with suppress(RuntimeError):  # the loop is gone, and the client with it
            self.loop.call_soon_threadsafe(settle)


class Worker:
    """Runs the model in a thread of its own; `observe` is told the size of every batch."""

    def __init__(
        self, model: Any, limits: Limits, observe: Callable[[int], None] = lambda _: None
    ) -> None:
        self.model, self.limits, self.observe = model, limits, observe
        self._waiting: deque[Ticket | _Opening] = deque()
        self._changed = threading.Condition()
        self._batch = limits.batch if model.exact_batches else 1
        self._stopping = False
        self._thread = threading.Thread()

    def start(self) -> None:
        """Begin to work."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="medisee-model", daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Finish what is being worked on, tell the rest that the server stops."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(seconds)

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._waiting)

    async def open(self, image: MedicalImage) -> Any:
        """A session of the model about the image; ServeError where the queue is full."""
        loop = asyncio.get_running_loop()
        job = _Opening(image, loop.create_future(), loop)
        self._submit([job])
        return await job.done

    def ask(self, tickets: Sequence[Ticket]) -> None:
        """Queue questions, all or none; ServeError where the queue is full."""
        self._submit(tickets)

    def _submit(self, jobs: Sequence[Ticket | _Opening]) -> None:
        with self._changed:
            if self._stopping:
                raise ServeError(503, "stopping", "the server is stopping")
            if len(self._waiting) + len(jobs) > self.limits.queue:
                raise ServeError(503, "full", "too many questions are waiting; try again soon")
            self._waiting.extend(jobs)
            self._changed.notify_all()

    # ---- the model's thread -----------------------------------------------------------------

    def _run(self) -> None:
        while self._work():
            pass
        self._turn_away()

    def _work(self) -> bool:
        """One job; nothing of it stays in this thread while it waits for the next."""
        job = self._next()
        if isinstance(job, _Opening):
            self._open(job)
        elif job is not None:
            self._answer(self._gather(job))
        return job is not None

    def _next(self) -> Ticket | _Opening | None:
        with self._changed:
            while not self._stopping:
                if self._waiting:
                    return self._waiting.popleft()
                self._changed.wait()
        return None

    def _open(self, job: _Opening) -> None:
        if job.done.cancelled():
            return
        try:
            job.tell(self.model.open(job.image), None)
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
            job.tell(None, error)

    def _gather(self, first: Ticket) -> list[Ticket]:
        """The first ticket and those of its session that come within a moment."""
        tickets = [first]
        if self._batch == 1:
            return tickets
        until = first.came + self.limits.gather_seconds
        with self._changed:
            while True:
                self._take_alike(tickets)
                rest = until - time.monotonic()
                if len(tickets) >= self._batch or rest <= 0 or self._stopping:
                    return tickets
                self._changed.wait(rest)

    def _take_alike(self, tickets: list[Ticket]) -> None:
        alike = [
            job
            for job in self._waiting
            if isinstance(job, Ticket) and job.session is tickets[0].session
        ]
        for job in alike[: self._batch - len(tickets)]:
            self._waiting.remove(job)
            tickets.append(job)

    def _answer(self, tickets: list[Ticket]) -> None:
        tickets = [ticket for ticket in tickets if not ticket.cancelled]
        if not tickets:
            return
        try:
            begun = tickets[0].session.begin(
                [ticket.question for ticket in tickets], [ticket.history for ticket in tickets]
            )
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
            self._answer_alone(tickets, error)
            return
        self.observe(len(tickets))
        speaking = [(ticket, *each) for ticket, each in zip(tickets, begun, strict=True)]
        for ticket, answer, _ in speaking:
            ticket.tell(("answer", _as_it_is(answer)))
        self._speak(speaking)

    def _answer_alone(self, tickets: list[Ticket], error: BaseException) -> None:
        """After a batch that failed: whose question it was finds out, the others are answered."""
        if len(tickets) == 1:
            tickets[0].tell(("error", error))
            return
        for ticket in tickets:
            self._answer([ticket])

    def _speak(self, speaking: list[tuple[Ticket, Answer, Iterator[str]]]) -> None:
        """A piece of every explanation in turn, until all are out; who has left is dropped."""
        while speaking:
            speaking = [each for each in speaking if _say(*each)]

    def _turn_away(self) -> None:
        error = ServeError(503, "stopping", "the server is stopping")
        while self._waiting:
            job = self._waiting.popleft()
            if isinstance(job, Ticket):
                job.tell(("error", error))
            else:
                job.tell(None, error)


def _say(ticket: Ticket, answer: Answer, words: Iterator[str]) -> bool:
    """Passes on one piece, or the whole Answer after the last; True while there may be more."""
    if ticket.cancelled:
        return False
    try:
        piece = next(words, None) if ticket.explain else None
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
        ticket.tell(("error", error))
        return False
    if piece is None:
        ticket.tell(("done", _as_it_is(answer)))
    else:
        ticket.tell(("text", piece))
    return piece is not None


def _as_it_is(answer: Answer) -> Answer:
    """The answer as it is now: the model goes on writing into its own."""
    return replace(answer, seconds=dict(answer.seconds))
