from __future__ import annotations

from medisee.parallel import each


def double(number: int) -> int:
    return 2 * number


def test_one_worker_keeps_the_order_and_draws_as_it_goes():
    drawn = []

    def numbers():
        for number in range(5):
            drawn.append(number)
            yield number

    results = each(double, numbers())
    assert next(results) == 0 and drawn == [0]
    assert list(results) == [2, 4, 6, 8]


def test_many_workers_do_everything_once():
    assert sorted(each(double, range(9), workers=2)) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
