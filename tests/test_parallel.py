from __future__ import annotations

from operator import neg
from threading import Event

import pytest

from medisee import parallel
from medisee.errors import InputError
from medisee.parallel import each, in_threads


def test_one_worker_keeps_the_order_and_draws_as_it_goes():
    drawn = []

    def numbers():
        for number in range(5):
            drawn.append(number)
            yield number

    results = each(neg, numbers())
    assert next(results) == 0 and drawn == [0]
    assert list(results) == [-1, -2, -3, -4]


def test_many_workers_do_everything_once():
    assert sorted(each(neg, range(9), workers=2)) == [-n for n in range(8, -1, -1)]


def test_threads_do_everything_once():
    assert sorted(in_threads(neg, range(9), 3, lambda: None)) == [-n for n in range(8, -1, -1)]


def test_an_error_in_a_thread_stops_the_others():
    stopped, begun = Event(), []

    def work(number):
        begun.append(number)
        if number == 1:
            raise ValueError("no more")
        assert stopped.wait(30)
        return number

    with pytest.raises(ValueError, match="no more"):
        list(in_threads(work, range(100), 3, stopped.set))
    assert stopped.is_set() and len(begun) <= 6


@pytest.mark.slow
def test_ray_does_everything_once_and_in_batches(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(parallel, "_AT_ONCE", 4)
    try:
        done = sorted(each(neg, range(9), workers=2, ray="local"))
    except InputError as error:
        pytest.skip(f"{error}: this machine is too busy for it")
    assert done == list(range(-8, 1))


@pytest.mark.slow
def test_a_cluster_that_cannot_be_had_is_told(monkeypatch):
    ray = pytest.importorskip("ray")

    def refuse(**options):
        raise Exception("timed out")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(InputError, match="no Ray cluster"):
        list(each(neg, range(9), ray="ray://nowhere:1"))
