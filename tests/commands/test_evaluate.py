"""`medisee evaluate`: one model, asked and scored at once."""

from __future__ import annotations

import json


def test_shows_the_tables_and_where_the_report_is(run, fake, data, tmp_path):
    done = run("evaluate", data, "--out", tmp_path / "scores")
    assert done.code == 0
    assert "referring" in done.out and "gIoU" in done.out
    assert "scores" in done.out
    report = json.loads((tmp_path / "scores/report.json").read_text())
    assert report["about"]["system"] == "nano" and report["pairs"] == 4


def test_json(run, fake, data, questions):
    done = run("evaluate", data, "--questions", questions, "--limit", "0", "--model", "m", "--json")
    report = json.loads(done.out)
    assert report["pairs"] == 11
    assert report["about"] == {
        "system": "medisee", "name": "MediSee", "readiness": "parity", "settings": {"model": "m"},
    }  # fmt: skip
