"""`medisee evaluate`: how the options reach the evaluation."""

from __future__ import annotations

import json

import pytest

from medisee.testing import FakeModel


class FakeReport:
    """A report with one table."""

    def to_dict(self):
        return {"pairs": 1}

    def to_markdown(self):
        return "# fake on test\n\n| kind | Dice |\n| --- | --- |\n| referring | 42.0 |\n"


@pytest.fixture
def asked(fake, monkeypatch):
    """The arguments of each call of `medisee.evaluation.evaluate`."""
    calls = []

    def evaluate(model, data, split, **options):
        calls.append((model, str(data), split, options))
        return FakeReport()

    monkeypatch.setattr("medisee.evaluation.evaluate", evaluate)
    return calls


def test_shows_the_tables_and_where_the_report_is(run, asked):
    done = run("evaluate", "data", "--split", "val", "--limit", "0", "--out", "scores")
    assert done.code == 0
    assert "referring" in done.out
    assert "42.0" in done.out
    assert "scores" in done.out
    [(model, data, split, options)] = asked
    assert isinstance(model, FakeModel)
    assert (data, split, options["limit"]) == ("data", "val", None)


def test_json(run, asked):
    assert json.loads(run("evaluate", "data", "--json").out) == {"pairs": 1}


def test_a_folder_without_data_is_one_line(run, fake):
    done = run("evaluate", "nowhere")
    assert done.code == 2
    assert done.err.count("\n") == 1
