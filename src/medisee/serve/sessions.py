"""Images kept open for further questions: a bounded number, in bounded memory, for a while."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from medisee.structures import Answer, Finding, MedicalImage, decode_rle, encode_rle

from .errors import ServeError
from .limits import Limits

__all__ = ["Held", "Kept", "SessionStore"]


class Kept(Protocol):
    """What a store can keep."""

    id: str
    bytes: int


Item = TypeVar("Item", bound=Kept)


class Held:
    """One open image: the model's session, and the rounds that were asked about it.

    rounds: number of questions asked; history: finished ones, as question and explanation.
    """

    def __init__(self, session: Any, limits: Limits) -> None:
        self.id = secrets.token_urlsafe(18)
        self.session = session
        self.suggestions: list[str] = []
        self.rounds = 0
        self.history: list[tuple[str, str]] = []
        self._limits = limits
        self._answers: OrderedDict[int, _Packed] = OrderedDict()
        self.bytes = _bytes_of(session)

    @property
    def image(self) -> MedicalImage:
        """The image."""
        return self.session.image

    def count(self) -> int:
        """The number of the next round."""
        self.rounds += 1
        return self.rounds

    def keep(self, number: int, answer: Answer) -> None:
        """Keep a round's answer for downloads, and its words for later questions."""
        packed = _Packed(answer)
        self._answers[number] = packed
        self.bytes += packed.bytes
        while len(self._answers) > self._limits.rounds:
            self.bytes -= self._answers.popitem(last=False)[1].bytes
        if answer.text:
            self.history = [*self.history[-3:], (answer.question, answer.text)]

    def answer(self, number: int | None) -> Answer:
        """The answer of a round, by default the last; ServeError where it is not there."""
        key = next(reversed(self._answers), None) if number is None else number
        if key is None or key not in self._answers:
            raise ServeError(404, "no_round", "there is no finished round of this number")
        return self._answers[key].unpack()


class SessionStore(Generic[Item]):
    """The sessions; those unused for longest make room for new ones."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self._clock = limits, clock
        self._held: OrderedDict[str, tuple[Item, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def bytes(self) -> int:
        """Memory of all sessions."""
        return sum(held.bytes for held, _ in self._held.values())

    def add(self, held: Item) -> None:
        """Keep a session; ServeError where it alone is larger than all may be."""
        if held.bytes > self.limits.session_bytes:
            raise ServeError(413, "too_large", "the image takes more memory than a session may")
        self._held[held.id] = (held, self._clock())
        self.trim()

    def get(self, key: str) -> Item:
        """The session, which counts as used now; ServeError where there is none."""
        self.trim()
        if key not in self._held:
            raise ServeError(404, "no_session", "there is no such session, or it has expired")
        held, _ = self._held.pop(key)
        self._held[key] = (held, self._clock())
        return held

    def remove(self, key: str) -> None:
        """Forget a session; ServeError where there is none."""
        self.get(key)
        del self._held[key]

    def clear(self) -> None:
        """Forget all."""
        self._held.clear()

    def trim(self) -> None:
        """Forget what has expired, and the longest unused while there are too many."""
        oldest = self._clock() - self.limits.session_seconds
        while self._held and (
            next(iter(self._held.values()))[1] < oldest
            or len(self._held) > self.limits.sessions
            or self.bytes > self.limits.session_bytes
        ):
            self._held.popitem(last=False)


class _Packed:
    """An answer with its masks run-length encoded."""

    def __init__(self, answer: Answer) -> None:
        self._answer = replace(answer, findings=[])
        self._findings = [
            (encode_rle(f.mask), f.box, f.score, f.similarity, f.label) for f in answer.findings
        ]
        sizes = [len(rle["counts"]) + _nbytes(map_) for rle, _, _, map_, _ in self._findings]
        self.bytes = 1024 + len(answer.question) + len(answer.text) + sum(sizes)

    def unpack(self) -> Answer:
        findings = [
            Finding(decode_rle(rle), box, score, similarity, label)
            for rle, box, score, similarity, label in self._findings
        ]
        return replace(self._answer, findings=findings)


def _bytes_of(session: Any) -> int:
    """Memory of a session: its image, the file it came from, and what the model keeps of it."""
    own = {name: value for name, value in vars(session).items() if name != "model"}
    # Every slice of an archive refers to the same bytes.
    return sum({id(value): _nbytes(value) for value in _walk(own.values())}.values())


def _walk(values: Iterable[Any]) -> Iterator[Any]:
    """The values, and those in tuples and in the fields of dataclasses among them."""
    for value in values:
        yield value
        if isinstance(value, tuple):
            yield from _walk(value)
        elif is_dataclass(value) and not isinstance(value, type):
            yield from _walk(getattr(value, each.name) for each in fields(value))


def _nbytes(value: Any) -> int:
    return len(value) if isinstance(value, bytes) else int(getattr(value, "nbytes", None) or 0)
