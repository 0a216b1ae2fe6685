"""Pictures of a set's counts: every category is there, nothing overlaps, nothing fails."""

from __future__ import annotations

import numpy as np
import pytest

from medisee.engine.figures import bars, draw_figures, lengths, perspectives, word_cloud
from medisee.engine.stats import Stats


def ink(picture):
    return int((np.asarray(picture.convert("L")) < 200).sum())


def test_the_cloud_finds_room_for_many_names_and_shows_frequent_ones_larger():
    few = word_cloud({"liver": 100}, 400, 200)
    rare = word_cloud({"kidney stone": 100, "liver": 1}, 800, 400)
    assert 0 < ink(word_cloud({"liver": 100}, 400, 200)) == ink(few)
    assert ink(rare) > 0
    many = word_cloud({f"name {n}": 300 - n for n in range(150)})
    assert many.size == (2000, 1100) and ink(many) > 20 * ink(few) / 4


def test_names_of_a_cloud_do_not_overlap(monkeypatch):
    from medisee.engine import figures

    seen = np.zeros((1100 // 4, 2000 // 4), int)
    claim = figures._claim_room

    def watched(taken, wide, high):
        before = taken.copy()
        place = claim(taken, wide, high)
        if place is not None:
            x, y = place[0] // 4, place[1] // 4
            assert not before[y : y + int(high) // 4 + 1, x : x + int(wide) // 4 + 1].any()
            seen[y : y + int(high) // 4 + 1, x : x + int(wide) // 4 + 1] += 1
        return place

    monkeypatch.setattr(figures, "_claim_room", watched)
    word_cloud({f"category {n}": n + 1 for n in range(60)})
    assert seen.max() == 1


def test_bars_grow_with_the_number_of_names():
    short, tall = bars("x", {"a": 1}), bars("x", {f"a{n}": n for n in range(1, 91)})
    assert tall.height > short.height and ink(tall) > ink(short)


@pytest.mark.parametrize("stats", [Stats(), Stats(balance={"attribute, short": 3})])
def test_a_set_without_questions_gives_empty_pictures(stats, tmp_path):
    assert len(draw_figures(stats, tmp_path)) == 5
    assert ink(lengths({5: 1, 9: 2}, {15: 3})) > ink(lengths({}, {}))
    assert ink(perspectives({"location, long": 9})) > ink(perspectives({}))
