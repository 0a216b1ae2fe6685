"""How fast and how far: a token bucket, and a budget that is never overdrawn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from medisee.engine.staged.calls import CallLog, Stopped
from medisee.errors import DataError

__all__ = ["Bucket", "Budget", "BudgetReachedError"]

_BURST = 10.0  # seconds' worth that may go at once


class Bucket:
    """A token bucket: so many units a minute, and some seconds' worth of them at once."""

    def __init__(
        self,
        per_minute: float | None,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = None if per_minute is None else per_minute / 60
        self._full = max(1.0, (self._rate or 0.0) * _BURST)
        self._level, self._stop, self._clock = self._full, stop, clock
        self._then = clock()
        self._lock = threading.Lock()

    def take(self, units: float) -> None:
        """Waits until so many units are there; whoever comes first waits least."""
        if self._rate is None:
            return
        with self._lock:
            now = self._clock()
            self._level = min(self._full, self._level + (now - self._then) * self._rate) - units
            self._then = now
            wait = max(0.0, -self._level / self._rate)
        if wait and self._stop.wait(wait):
            raise Stopped


class BudgetReachedError(DataError):
    """The next call might cost more than is left."""


class Budget:
    """Money that all calls of a log may cost together; None for no limit."""

    def __init__(self, limit: float | None, log: CallLog) -> None:
        self._limit, self._log = limit, log
        self._held: list[float] = []  # one of each call; a running sum would not come back to 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, most: float) -> Iterator[None]:
        """Keeps back what a call may cost at most while it is made and its reply is logged.

        Where calls under way might leave enough, waits for them. Raises BudgetReachedError.
        """
        if self._limit is None:
            yield
            return
        with self._changed:
            while self._log.spent + sum(self._held) + most > self._limit:
                if not self._held:
                    raise BudgetReachedError(
                        f"the budget of {self._limit:g} is reached: {self._log.calls:,} calls cost "
                        f"{self._log.spent:.4g} and are kept; raise it and run again to go on"
                    )
                self._changed.wait()
            self._held.append(most)
        try:
            yield
        finally:
            with self._changed:
                self._held.remove(most)
                self._changed.notify_all()
