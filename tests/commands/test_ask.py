"""`medisee ask`: what it prints, what it writes, how it refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

QUESTION = "Which organ makes bile?"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_shows_explanation_finding_and_files(run, fake, scan, tmp_path):
    done = run("ask", scan, QUESTION, "--out", "results")
    assert done.code == 0
    for text in (
        "scan.png, kind of image unknown, 64 x 48 px",
        QUESTION,
        "The liver is in",
        "0.75",
    ):
        assert text in done.out
    files = ["scan.1.mask.png", "scan.json", "scan.overlay.png"]
    assert names(tmp_path / "results") == files
    assert all(f"wrote results/{name}" in done.err.replace("\\", "/") for name in files)


def test_without_out_the_current_folder_takes_the_files(run, fake, scan, tmp_path):
    assert run("ask", scan, QUESTION).code == 0
    assert "scan.overlay.png" in names(tmp_path)


def test_two_questions_are_answered_in_order(run, fake, scan, tmp_path):
    done = run("ask", scan, "Where is it?", QUESTION, "-o", "results")
    assert done.out.index("? Where is it?") < done.out.index(f"? {QUESTION}")
    written = [
        json.loads(path.read_text()) for path in sorted((tmp_path / "results").glob("*.json"))
    ]
    assert [answer["question"] for answer in written] == ["Where is it?", QUESTION]


def test_files_that_are_there_are_kept(run, fake, scan, tmp_path):
    run("ask", scan, QUESTION, "-o", "results")
    before = (tmp_path / "results" / "scan.json").read_bytes()
    assert run("ask", scan, "Another one?", "-o", "results").code == 0
    assert (tmp_path / "results" / "scan.json").read_bytes() == before
    assert (
        json.loads((tmp_path / "results" / "scan-2.json").read_text())["question"] == "Another one?"
    )


def test_overwrite_replaces_them(run, fake, scan, tmp_path):
    run("ask", scan, QUESTION, "-o", "results")
    assert run("ask", scan, "Another one?", "-o", "results", "--overwrite").code == 0
    assert (
        json.loads((tmp_path / "results" / "scan.json").read_text())["question"] == "Another one?"
    )
    assert len(names(tmp_path / "results")) == 3


def test_json_prints_nothing_else_and_writes_no_file(run, fake, scan, tmp_path):
    done = run("ask", scan, QUESTION, "--json")
    answer = json.loads(done.out)
    assert answer["question"] == QUESTION
    assert answer["findings"][0]["label"] == "liver"
    assert names(tmp_path) == ["scan.png"]


def test_json_of_several_questions_is_an_array_and_out_still_writes(run, fake, scan, tmp_path):
    done = run("ask", scan, "One?", "Two?", "--json", "--out", "results")
    assert [answer["question"] for answer in json.loads(done.out)] == ["One?", "Two?"]
    assert len(names(tmp_path / "results")) == 6


def test_no_explain_leaves_the_words_away(run, fake, scan):
    done = run("ask", scan, QUESTION, "--no-explain", "-o", "results")
    assert done.code == 0
    assert "The liver is" not in done.out
    assert "0.75" in done.out


@pytest.mark.parametrize(("option", "code"), [([], 0), (["--fail-on-refusal"], 3)])
def test_a_refusal_is_an_answer_unless_asked_otherwise(run, fake, scan, tmp_path, option, code):
    done = run("ask", scan, "Is the absent thing here?", "-o", "results", *option)
    assert done.code == code
    assert "Not in this image" in done.out
    assert names(tmp_path / "results") == ["scan.json", "scan.overlay.png"]


def test_warnings_are_shown(run, fake, scan):
    assert "! The question is not in English." in run("ask", scan, "肝臓はどこですか").out


def test_markup_in_a_question_is_only_text(run, fake, scan):
    assert "? Where is [bold]the [SEG] liver[/]?" in run(
        "ask", scan, "Where is [bold]the [SEG] liver[/]?", "-o", "results"
    ).out  # fmt: skip


@pytest.mark.parametrize(
    ("question", "word"),
    [("", "empty"), (" \n\t", "empty"), ("why " * 501, "2,000"), ("a\udcff", "UTF-8")],
)
def test_a_question_that_is_none_is_refused_before_anything_is_loaded(run, scan, question, word):
    done = run("ask", scan, "Fine?", question)
    assert done.code == 2
    assert word in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.png", None),
        ("empty.png", b""),
        ("text.png", b"no image at all"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"),
    ],
)
def test_a_file_that_is_no_image_is_one_line(run, fake, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = run("ask", name, QUESTION, "-o", "results")
    assert done.code == 2
    assert done.err.startswith("medisee: ")
    assert name in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "results").exists()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0"]),
       tail=st.binary(max_size=300))  # fmt: skip
def test_random_files_never_give_a_traceback(run, fake, tmp_path, head, tail):
    (tmp_path / "random.bin").write_bytes(head + tail)
    done = run("ask", "random.bin", QUESTION, "-o", "results")
    assert done.code == 2
    assert done.err.count("\n") == 1


def test_an_unknown_model_is_one_line(run, scan, monkeypatch):
    done = run("ask", scan, QUESTION, "--model", "nanoo")
    assert done.code == 2
    assert "nano" in done.err


def test_out_that_is_a_file_is_refused_before_the_model_is_loaded(run, scan):
    done = run("ask", scan, QUESTION, "--out", scan / "below")
    assert done.code == 2
    assert "is a file" in done.err


def test_choices_that_a_file_has_no_room_for_are_refused(run, fake, scan):
    for choice in (["--slice", 3], ["--plane", "axial"], ["--window", "40;400"]):
        done = run("ask", scan, QUESTION, *choice)
        assert done.code == 2
        assert done.err.count("\n") == 1
