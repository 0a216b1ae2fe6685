"""One door to many workers: the processes of this machine, or a Ray cluster when asked."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
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
from typing import Any, TypeVar

from medisee.errors import InputError
from medisee.extras import needs_extra

__all__ = ["each", "in_threads"]

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 1024  # items that Ray holds; the next ones are drawn when these are done


def each(
    work: Callable[[T], R], items: Iterable[T], workers: int = 1, ray: str = ""
) -> Iterator[R]:
    """`work(item)` for each item, in the order in which they are done.

    `items` is drawn from as workers become free, so any number of them needs constant memory.
    With more than one worker, or with Ray, `work`, items and results must be picklable.

    ray: where a Ray cluster listens ("auto", "ray://head:10001"), which then does the work with
        all that it has; "local" starts one of `workers` processes on this machine.
    """
    if ray:
        yield from _each_on_ray(work, items, workers, ray)
        return
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


def _each_on_ray(
    work: Callable[[T], R], items: Iterable[T], workers: int, address: str
) -> Iterator[R]:
    """Batches of items as Ray Data; they travel pickled, as Arrow would take them apart."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    with needs_extra("work on a Ray cluster", "ray"):
        import ray
        import ray.data

    def done(row: dict[str, Any]) -> dict[str, bytes]:
        return {"result": pickle.dumps(work(pickle.loads(row["item"])))}

    where: dict[str, Any] = {"address": address}
    if address == "local":
        where.update(num_cpus=max(1, workers), include_dashboard=False)
    try:
        ray.init(**where, logging_level="ERROR", log_to_driver=False)
    except Exception as error:  # Ray raises whatever, a plain Exception included
        raise InputError(f"no Ray cluster starts or answers at '{address}'") from error
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        queue = iter(items)
        while batch := [{"item": pickle.dumps(item)} for item in islice(queue, _AT_ONCE)]:
            cores = int(ray.cluster_resources().get("CPU", 0)) or 1
            blocks = min(len(batch), 4 * cores)
            rows = ray.data.from_items(batch, override_num_blocks=blocks).map(done)
            yield from (pickle.loads(row["result"]) for row in rows.iter_rows())
    finally:
        ray.shutdown()


def _end_with_parent() -> None:
    """A worker does not outlive a parent that was killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
