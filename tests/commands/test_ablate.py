"""`medisee ablate`: a row from training to table, what is kept, what is refused before any work."""

from __future__ import annotations

import pytest
from synthetic import write_data

training = pytest.importorskip("medisee.training")

from tiny import save_nano  # noqa: E402

from medisee.training import ablate  # noqa: E402


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("scans") / "ct")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "tiny"
    return save_nano(folder, box_decoder="grounded", grounding_grid=8)


@pytest.fixture
def ablating(run, scans, untrained, monkeypatch, tmp_path_factory):
    """`ablating("table5", ...)` trains tiny rows of one step on a few drawn images."""
    monkeypatch.setattr(training, "VAL_RECORDS", 90)
    monkeypatch.setitem(ablate._stated()["base"], "records", 60)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))

    def command(table, *options):
        return run("ablate", table, scans, "--init", untrained, "--threads", 1, *options)

    return command


@pytest.fixture
def trained(monkeypatch):
    """The rows that were trained; training itself is left out."""
    rows = []

    def stop(row, settings):
        rows.append(row.row)
        raise KeyboardInterrupt

    monkeypatch.setattr(ablate, "train_row", stop)
    return rows


def lines_of(table):
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]


def test_a_row_is_trained_asked_and_written_beside_the_published_figures(ablating, tmp_path):
    """One that trains the encoder through adapters, so that all features are made anew."""
    done = ablating("table6", "--rows", "segmenter-lora", "--steps", 1)
    assert done.code == 0, done.err
    assert "row 1 of 1: segmenter-lora" in done.err
    text = (tmp_path / "ablations" / "table6.md").read_text(encoding="utf-8")
    head, _, *rows = lines_of(text)
    by_name = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    own, other = by_name["segmenter: LiteMedSAM, encoder with LoRA"], by_name["segmenter: random"]
    assert (own["paper"], own["paper: referring gIoU"]) == ("segmenter: MedSAM (LoRA)", "46.3")
    assert (other["paper"], other["paper: referring gIoU"]) == ("-", "-")
    for kind in ("referring", "reasoning"):
        assert "(" in own[f"ours: {kind} gIoU"]
        assert other[f"ours: {kind} gIoU"] == "not run"
    assert "46.3" in done.out


def test_what_is_there_is_kept_and_a_stopped_row_goes_on(ablating, trained, tmp_path):
    for _ in range(2):
        assert ablating("table4", "--rows", "2-soft-144", "--samples", 9).code == 130
    assert trained == ["2-soft-144"] * 2
    folder = tmp_path / "ablations" / "base"
    folder.mkdir()
    (folder / "report.json").write_text(
        '{"split": "val", "kinds": {}, "length": {}, "about": {}, "model": "m"}'
    )
    assert ablating("table4", "--rows", "2-soft-144", "--samples", 9).code == 0
    assert ablating("table6", "--rows", "language-whole", "--samples", 9).code == 0
    assert len(trained) == 2  # rows that change nothing are one run


def test_rows_made_otherwise_are_not_mixed(ablating, trained):
    assert ablating("table4", "--samples", 9).code == 130
    done = ablating("table4", "--steps", 9)
    assert done.code == 2
    assert "samples = 9, not None" in done.err
    assert len(trained) == 1


@pytest.mark.parametrize(
    ("table", "options", "word"),
    [
        ("table7", [], "table7"),
        ("table4", ["--rows", "text"], "it has 1-single, 2-hard"),
        ("table4", ["--samples", 9, "--steps", 9], "one of them"),
        ("table4", ["--samples", 0], "--samples"),
        ("table4", ["--init", "nowhere"], "nowhere"),
        ("table4", ["--out", "file.txt"], "is a file"),
    ],
)
def test_bad_options_are_named_before_any_time_is_spent(
    ablating, trained, tmp_path, table, options, word
):
    (tmp_path / "file.txt").write_text("")
    done = ablating(table, *options)
    assert done.code == 2
    assert word in done.err.replace("\n", " ")
    assert not trained
    assert not (tmp_path / "ablations").exists()


def test_without_an_untrained_model_it_says_how_to_make_one(run, scans):
    done = run("ablate", "table4", scans)
    assert done.code == 2
    assert "medisee.training.nano" in done.err


def test_data_without_validation_images_are_named(run, trained, untrained, tmp_path):
    data = write_data(tmp_path / "ct", {"train": 1})
    done = run("ablate", "table4", data, "--init", untrained)
    assert done.code == 2
    assert "'val'" in done.err
    assert not trained
