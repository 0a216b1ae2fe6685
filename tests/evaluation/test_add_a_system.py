"""The example of docs/add_a_system.md runs through the bench, and is short."""

from __future__ import annotations

import json
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_system.md"


def test_the_example_runs(run, data, tmp_path):
    [code] = re.findall(r"^```py\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(code.splitlines()) <= 60
    (tmp_path / "brightest.py").write_text(code, encoding="utf-8")
    asked = ["--system", "brightest.py:build", "--set", "share=0.2", "--data", data]
    done = run("bench", "run", *asked)
    assert done.code == 0, done.err
    done = run("bench", "score", "bench/brightest", "--data", data)
    assert "brightest part" in done.out
    report = json.loads((tmp_path / "bench/brightest/report.json").read_text())
    assert report["about"]["readiness"] == "untested"
    assert report["about"]["settings"] == {"share": "0.2"}
    assert run("bench", "run", *asked, "--set", "shade=1").code == 2
    assert (
        "has no function make"
        in run("bench", "run", *asked[2:], "--system", "brightest.py:make").err
    )
