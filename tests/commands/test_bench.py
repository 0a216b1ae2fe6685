"""`medisee bench`: systems, run, score, table, contamination, on a fake model and a tiny set."""

from __future__ import annotations

import csv
import json

import pytest

from medisee.evaluation.systems import SYSTEMS

PAPER = {
    "Grounding DINO + SAM-Med2D", "Grounding DINO + MedSAM", "BiomedParse", "IMIS-Net",
    "Janus-Pro + BiomedParse", "LLaVA-Med + BiomedParse", "GPT-4o + BiomedParse",
    "Janus-Pro + IMIS-Net", "LLaVA-Med + IMIS-Net", "GPT-4o + IMIS-Net", "LISA-7B", "LISA-13B",
    "Uni-Med", "LLaVA-Med + Uni-Med", "MediSee + READ", "MediSee", "MediSee (ft)",
    "MedSAM (true box)", "IMIS-Net (true box)",
}  # fmt: skip


def test_every_system_of_the_paper_keeps_its_row(run):
    rows = json.loads(run("bench", "systems", "--json").out)
    assert {row["name"] for row in rows} >= PAPER
    assert all(row["needs"] and row["licence"] and row["readiness"] for row in rows)
    assert len({row["key"] for row in rows}) == len(rows)
    known = {row["name"]: row["readiness"] for row in rows}
    assert known["MedSAM (true box)"] == "keys" and known["IMIS-Net"] == "parity"
    assert known["BiomedParse"] == known["GPT-4o + IMIS-Net"] == "adapter"
    assert "verified" not in known.values()  # no official weights were at hand
    assert "grounding-dino+medsam" in run("bench", "systems").out


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.key)
def test_every_row_has_a_function_that_makes_it(system):
    pytest.importorskip("torch")
    assert callable(system.function)


def test_run_score_and_compare(run, fake, data, tmp_path):
    for system in ("nano", "centred-box", "category-mean"):
        done = run("bench", "run", "--system", system, "--data", data)
        assert done.code == 0, done.err
        assert "predictions.jsonl" in done.err
    folders = [tmp_path / "bench" / name for name in ("nano", "centred-box", "category-mean")]
    done = run("bench", "score", *folders, "--data", data)
    assert done.code == 0, done.err
    assert "p corrected" in done.out
    assert (folders[0] / "comparison.md").is_file()
    report = json.loads((folders[2] / "report.json").read_text())
    assert report["about"]["readiness"] == "own"
    assert report["cost"]["seconds_mean"] > 0
    done = run("bench", "score", folders[0], "--data", data, "--json")
    assert [each["model"] for each in json.loads(done.out)] == ["fake"]


def test_table(run, fake, data, tmp_path):
    run("bench", "run", "--system", "nano", "--data", data, "--out", "r")
    run("bench", "score", "r", "--data", data)
    shown = run("bench", "table", "3", "--report", "r", "--report", "MediSee=r").out
    lines = [line for line in shown.splitlines() if line.startswith("| ")]
    assert "paper: referring Dice" in lines[0] and "ours: referring Dice" in lines[0]
    rows = {line.split(" | ")[0].strip("| "): line for line in lines[2:]}
    assert "61.2" in rows["MediSee"] and "(" in rows["MediSee"]
    assert "77.7" in rows["MedSAM (true box)"]
    assert rows["MediSee nano"].split(" | ")[2] == "-"
    run("bench", "table", "1", "--format", "csv", "--out", "t.csv")
    table = list(csv.reader((tmp_path / "t.csv").open()))
    assert {row[0] for row in table[1:]} <= PAPER
    assert r"\toprule" in run("bench", "table", "6", "--format", "latex").out


def test_contamination(run, data):
    done = run("bench", "contamination", "--data", data)
    assert "same image: 3" in done.out  # the three images are the same grey in both splits
    assert "patient: 0" in done.out
    assert run("bench", "contamination", "--data", data, "--train-split", "none").code == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--system", "nanno"], "did you mean nano?"),
        (["--system", "medisee"], "--set model="),
        (["--system", "nano", "--set", "x=1"], "has no setting x"),
        (["--system", "nano", "--set", "x"], "write NAME=VALUE"),
        (["--system", "none.py:build"], "no such Python file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(run, data, argv, said):
    done = run("bench", "run", "--data", data, *argv)
    assert done.code == 2 and said in done.err and done.err.count("\n") == 1


def test_bad_runs_and_reports_are_said(run, data, tmp_path):
    (tmp_path / "p.jsonl").write_text("{}\n")
    assert "no predictions file" in run("bench", "score", "p.jsonl", "--data", data).err
    assert "is no report" in run("bench", "table", "1", "--report", "p.jsonl").err
    assert "tables 1 to 6" in run("bench", "table", "7").err
