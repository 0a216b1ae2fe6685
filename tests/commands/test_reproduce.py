"""`medisee reproduce` and `medisee bench probe`, on a fake model and a tiny set."""

from __future__ import annotations

import json

import pytest

from medisee.evaluation.benchmark import compare_with_text


@pytest.fixture
def whole(data):
    """The tiny set with a validation split."""
    path = data / "index.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines += [{**line, "split": "val"} for line in lines if line["split"] == "train"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return data


def test_probe(run, fake, whole, tmp_path):
    pytest.importorskip("matplotlib")
    done = run("bench", "probe", "wording", "--system", "nano", "--data", whole, "--count", "4")
    assert done.code == 0, done.err
    assert "typos" in done.out
    folder = tmp_path / "bench/probe-wording"
    assert json.loads((folder / "probe.json").read_text())["name"] == "wording"
    assert (folder / "probe.png").stat().st_size > 1000
    assert run("bench", "probe", "smell", "--system", "nano", "--data", whole).code == 2


def test_reproduce(run, fake, whole, questions, tmp_path):
    pytest.importorskip("matplotlib")
    asked = [whole, "--questions", questions, "--limit", "1", "--docs", "clone"]
    (tmp_path / "clone/docs").mkdir(parents=True)
    readme = (
        "# Fake\n\n|  | n | Dice |\n| --- | --- | --- |\n| nano, referring | 3 | 99.9 (1-2) |\n"
    )
    (tmp_path / "clone/README.md").write_text(readme)
    done = run("reproduce", *asked)
    assert done.code == 3, done.err
    assert "2 figures compared, 1 differ." in done.out
    assert "nano, referring, Dice: 99.9 (1-2) written" in done.out
    page = (tmp_path / "reproduced/benchmark.md").read_text()
    for part in ("mean mask of the category", "## Paired differences", "target erased",
                 "paper: val Dice", "images/benchmark/categories.png"):  # fmt: skip
        assert part in page
    assert (tmp_path / "reproduced/images/benchmark/categories.png").is_file()
    assert (tmp_path / "reproduced/examples.png").is_file()
    assert not (tmp_path / "clone/docs/benchmark.md").exists()

    run("reproduce", *asked, "--write")
    assert (tmp_path / "clone/docs/benchmark.md").read_text() == page
    told = json.loads((tmp_path / "reproduced/differences.json").read_text())
    assert next(len(each) for each in told.values()) == 1
    assert run("reproduce", whole, "--write", "--docs", "nowhere").code == 2


def test_cells_are_told_apart_by_kind_row_and_column():
    table = "## By length ({})\n\n| length | Dice |\n| --- | --- |\n| short | {} (1-2) |\n"
    written = table.format("implicit", "10.0") + "\n" + table.format("referring", "20.0")
    measured = table.format("referring", "20.0") + "\n" + table.format("implicit", "11.0")
    common, [difference] = compare_with_text(written, measured)
    assert common == 2
    assert (difference.written, difference.measured) == ("10.0 (1-2)", "11.0 (1-2)")
