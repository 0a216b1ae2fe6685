"""Probes: what is varied, and what their tables say of a model that never looks."""

from __future__ import annotations

import random

import numpy as np
import pytest

from medisee.data.mlmr_sd import read_records
from medisee.data.sa_med2d import Index
from medisee.entities import load_entities
from medisee.errors import DataError
from medisee.evaluation import PREDICTIONS, Selection, evaluate
from medisee.evaluation.probes import ORIGINAL, PROBES, SPLIT, make_probe, summarise
from medisee.evaluation.probes.variants import (
    _languages,
    _misspelt,
    _moved,
    _translations,
    drawing,
    erase,
)
from medisee.testing import FakeModel


def probe(name, data, tmp_path, model=None):
    index, questions = make_probe(name, Index.open(data), "test", 12, 0, tmp_path)
    selection = Selection(SPLIT, questions, None)
    report = evaluate(lambda: model or FakeModel(), index, selection, tmp_path)
    found = summarise(name, report, tmp_path / PREDICTIONS)
    return {row.variant: row for row in found.rows}, found, questions


def test_look(data, tmp_path):
    rows, found, _ = probe("look", data, tmp_path)
    assert {ORIGINAL, "target erased", "noise with the same grey values"} <= rows.keys()
    assert rows[ORIGINAL].agreement is None
    # A model that draws the same ellipse whatever it sees agrees with itself everywhere.
    assert rows["target erased"].agreement.value == 1.0
    assert "| target erased |" in found.to_markdown()


def test_wording(data, tmp_path):
    rows, _, questions = probe("wording", data, tmp_path)
    assert {"paraphrase", "typos", "casual", "formal"} <= rows.keys()
    asked = {record.id: record.question for record in read_records(questions)}
    assert len(set(asked.values())) > 12
    assert any("My doctor said" in question for question in asked.values())


def test_translations_name_categories_that_there_are():
    for words in _languages().values():
        assert words["names"].keys() <= load_entities().keys()
        assert words["ask"].count("{}") == 1
    assert dict(_translations("liver"))["German"] == "Bitte markiere die Leber in diesem Bild."
    assert not list(_translations("no such category"))


def test_refusal(data, tmp_path):
    rows, _, _ = probe("refusal", data, tmp_path)
    assert rows["present (control)"].answered.value == 1.0
    assert rows["a picture that is not medical"].reason.value == 0.0
    assert all(row.disagree == 0 for row in rows.values())


class Contradicting(FakeModel):
    """Refuses and marks at once."""

    def open(self, image):
        session = super().open(image)
        ask = session.ask

        def both(question, explain=True):
            answers = ask(question, explain)
            for answer in answers:
                answer.refusal = next(iter(self.refuse.values()))
            return answers

        session.ask = both
        return session


def test_contradictions_are_counted(data, tmp_path):
    rows, _, _ = probe("refusal", data, tmp_path, Contradicting())
    assert sum(row.disagree for row in rows.values()) == sum(row.n for row in rows.values())


def test_rounds(data, tmp_path):
    rows, _, questions = probe("rounds", data, tmp_path)
    assert any("targets at once" in name for name in rows)
    assert any(record.history for record in read_records(questions))
    assert "its target by name, first round" in rows


def test_what_is_erased_and_moved():
    rng = random.Random(0)
    pixels = np.full((40, 40, 3), 10, np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[5:15, 5:15] = True
    pixels[mask] = 200
    assert erase(pixels, mask, rng).max() == 10
    moved = _moved(mask, rng)
    assert moved.sum() == mask.sum() and not (moved & mask).any()
    assert _moved(np.ones((4, 4), bool), rng) is None
    assert drawing(rng).shape == (256, 256, 3)


def test_misspelt_words_keep_their_letters():
    text = "Where is the spleen of this patient?"
    other = _misspelt(text, random.Random(1))
    assert other != text and sorted(other) == sorted(text)


def test_bad_names_and_splits(data, tmp_path):
    assert set(PROBES) == {"look", "wording", "refusal", "rounds"}
    with pytest.raises(DataError, match="there is no probe"):
        make_probe("smell", Index.open(data), "test", 3, 0, tmp_path)
    with pytest.raises(DataError, match="no labelled image"):
        make_probe("look", Index.open(data), "nowhere", 3, 0, tmp_path)
