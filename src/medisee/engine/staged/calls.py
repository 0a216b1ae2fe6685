"""What is asked of a model, what it replied, and the file in which replies are kept.

One format serves two ends: an endpoint's replies are kept in it, so that none is paid for twice,
and a script is such a file, written by hand or left behind by a build.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medisee.engine.staged.prompts import Stage, prompt
from medisee.errors import DataError

__all__ = ["Answering", "Call", "CallFile", "CallLog", "Kept", "Script", "Stopped", "Unanswered"]

Subject = tuple[str, str, str, int, int]


@dataclass(frozen=True)
class Call:
    """One request: about which target of which image, and the words.

    `picture` is the image's file, for whoever sends it along; `attempt` counts up when a reply
    could not be used; `items` says how many things are asked for.
    """

    stage: Stage
    image: str
    label: str
    pass_: int
    attempt: int
    user: str
    picture: Path
    items: int = 1

    @property
    def subject(self) -> Subject:
        """What the call is about, whatever its words."""
        return (self.stage, self.image, self.label, self.pass_, self.attempt)

    @property
    def about(self) -> dict[str, Any]:
        """The subject as fields of a reply."""
        return dict(zip(("stage", "image", "label", "pass_", "attempt"), self.subject, strict=True))

    def key(self, model: str, with_picture: bool) -> str:
        """Of the content: the same words (and picture) to the same model are the same call."""
        parts = [model, self.stage, str(self.attempt), prompt(self.stage).system, self.user]
        digest = hashlib.sha256("\0".join(parts).encode())
        if with_picture:
            digest.update(self.picture.read_bytes())
        return digest.hexdigest()[:32]


class Kept(BaseModel):
    """A reply as it is kept, one line of a call file; a script needs `stage` and `reply` only.

    Without `image` a line answers for any image. With a `flaw`, such as "refused", "cut off" or
    "nothing", it is no reply that can be used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    stage: Stage
    image: str = ""
    label: str = ""
    pass_: int = Field(default=1, alias="pass")
    attempt: int = 0
    reply: str | dict[str, Any]
    flaw: str = ""
    writer: str = "scripted"
    key: str = ""
    tokens: tuple[int, int] = (0, 0)
    cost: float = 0.0

    @property
    def subject(self) -> Subject:
        """As of the call that it answers."""
        return (self.stage, self.image, self.label, self.pass_, self.attempt)

    @property
    def text(self) -> str:
        """The reply as a model would have written it."""
        return self.reply if isinstance(self.reply, str) else json.dumps(self.reply)


class Unanswered(Exception):  # noqa: N818 - an outcome that the run lives with
    """A call has no reply; `again`: another time it may have one."""

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class Stopped(Exception):  # noqa: N818
    """The run ends, and a waiting thread with it."""


class Answering(Protocol):
    """Whoever answers calls. Raises Unanswered, or MediSeeError where the run must end."""

    @property
    def model(self) -> str:
        """Name of who answers, for the summary."""

    @property
    def fingerprint(self) -> str:
        """Of what decides the replies, besides the calls."""

    def answer(self, call: Call) -> Kept:
        """The reply, good or bad."""

    def tokens(self, call: Call) -> int:
        """About how many tokens a call has."""

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """The price of so many tokens."""


class CallFile:
    """Replies in a JSONL file; of each only its place is held in memory.

    A line that cannot be read, as a kill may leave one, is counted in `flawed` and passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.flawed = 0

    def entries(self) -> Iterator[tuple[int, Kept]]:
        """Every reply with its place."""
        place = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if line.strip():
                    try:
                        yield place, Kept.model_validate_json(line)
                    except ValidationError:
                        self.flawed += 1
                place += len(line)

    def at(self, place: int) -> Kept:
        """The reply at a place that `entries` gave."""
        with self.path.open("rb") as file:
            file.seek(place)
            return Kept.model_validate_json(file.readline())


class Script:
    """Replays a call file: the first line of a subject counts, one of its image before others."""

    model = "scripted"

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"{path}: there is no such script")
        self.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
        self._file = CallFile(path)
        self._places: dict[Subject, int] = {}
        for place, kept in self._file.entries():
            self._places.setdefault(kept.subject, place)
        if not self._places:
            raise DataError(f"{path}: holds no reply; each line is JSON with 'stage' and 'reply'")

    @property
    def flawed(self) -> int:
        """Lines that could not be read."""
        return self._file.flawed

    @property
    def stages(self) -> frozenset[str]:
        """The stages that the script has replies for."""
        return frozenset(subject[0] for subject in self._places)

    def tokens(self, call: Call) -> int:
        """A script has all its words already."""
        return 0

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """And costs nothing."""
        return 0.0

    def answer(self, call: Call) -> Kept:
        """The scripted reply; Unanswered where the script has none."""
        subject = call.subject
        place = self._places.get(subject, self._places.get((subject[0], "", *subject[2:])))
        if place is None:
            raise Unanswered("the script has no reply", again=False)
        return self._file.at(place)


class CallLog:
    """The replies that were paid for, on disk before they are used."""

    def __init__(self, path: Path) -> None:
        self._kept = CallFile(path)
        self._places: dict[str, int] = {}
        self._subjects: set[Subject] = set()
        self._asking: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()
        self._is_whole = not path.is_file()
        self.calls, self.tokens, self.spent = 0, (0, 0), 0.0
        if path.is_file():
            for place, kept in self._kept.entries():
                self._note(place, kept)

    def _note(self, place: int, kept: Kept) -> None:
        self._places.setdefault(kept.key, place)
        self._subjects.add(kept.subject)
        self.calls += 1
        self.tokens = (self.tokens[0] + kept.tokens[0], self.tokens[1] + kept.tokens[1])
        self.spent += kept.cost

    def asking(self, key: str) -> AbstractContextManager[Any]:
        """Held while a call is made, so that no two threads make the same one."""
        with self._lock:
            return self._asking[key]

    def find(self, key: str) -> Kept | None:
        """The reply to the call with this key."""
        place = self._places.get(key)
        return None if place is None else self._kept.at(place)

    @property
    def flawed(self) -> int:
        """Lines that could not be read when the log was opened."""
        return self._kept.flawed

    def tells_of(self, subject: Subject) -> bool:
        """Whether a line of the log is about this, so that it can serve as a script."""
        return subject in self._subjects

    def add(self, kept: Kept) -> None:
        """Keeps a reply; when this returns it is on disk. OSError leaves the file readable."""
        line = kept.model_dump_json(by_alias=True).encode() + b"\n"
        # Unbuffered, appending: a line is written in one go, so a kill can cut the last one only.
        with self._lock, self._kept.path.open("ab", buffering=0) as out:
            # The last line may have been cut off, by a kill or a full disk: it gets its break.
            start = b"" if self._is_whole else b"\n"
            place = out.seek(0, os.SEEK_END) + len(start)
            self._is_whole = False
            if out.write(start + line) != len(start + line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._kept.path))
            os.fsync(out.fileno())
            self._is_whole = True
            self._note(place, kept)
