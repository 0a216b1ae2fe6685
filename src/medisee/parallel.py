"""One door to many workers: the processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from itertools import islice
from typing import TypeVar

__all__ = ["each", "in_threads"]

T = TypeVar("T")
R = TypeVar("R")


def each(work: Callable[[T], R], items: Iterable[T], workers: int = 1) -> Iterator[R]:
    """`work(item)` for each item, in the order in which they are done.

    `items` is drawn from as workers become free, so any number of them needs constant memory.
    With more than one worker, `work`, items and results must be picklable.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    context = multiprocessing.get_context("spawn")  # safe whatever threads the caller has
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        yield from _through(pool, work, items, 2 * workers)


def in_threads(
    work: Callable[[T], R], items: Iterable[T], threads: int, stop: Callable[[], None]
) -> Iterator[R]:
    """The same in threads of this process, for work that waits more than it computes.

    After an error or an interruption nothing new is begun, and `stop()` must let what is under way
    come to an end.
    """
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from _through(pool, work, items, threads)
        except BaseException:
            stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _through(
    pool: Executor, work: Callable[[T], R], items: Iterable[T], window: int
) -> Iterator[R]:
    """Results as they come; `window` items are handed out at a time."""
    queue = iter(items)
    waiting: set[Future[R]] = {pool.submit(work, item) for item in islice(queue, window)}
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        waiting |= {pool.submit(work, item) for item in islice(queue, len(done))}
        yield from (future.result() for future in done)


def _end_with_parent() -> None:
    """A worker does not outlive a parent that was killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
