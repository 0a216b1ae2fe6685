from __future__ import annotations

from operator import neg

from medisee.parallel import each


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
