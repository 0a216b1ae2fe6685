"""`medisee examples`: the list and the pictures."""

from __future__ import annotations

import json

from PIL import Image

from medisee.examples import list_examples


def test_lists_a_command_for_each(run):
    done = run("examples")
    assert done.code == 0
    text = " ".join(done.out.split())
    for example in list_examples():
        assert f'medisee ask example:{example.name} "{example.question}"' in text


def test_as_json(run):
    listed = json.loads(run("examples", "--json").out)
    assert [entry["name"] for entry in listed] == [example.name for example in list_examples()]


def test_written_as_png_and_never_over_a_file(run, tmp_path):
    done = run("examples", "--write", "pictures")
    assert done.code == 0
    for example in list_examples():
        with Image.open(tmp_path / "pictures" / f"{example.name}.png") as picture:
            assert min(picture.size) > 64
    assert run("examples", "--write", "pictures").code == 2


def test_an_example_is_asked_by_its_name(run, fake, tmp_path):
    done = run("ask", "example:abdomen-mr", "Which organ makes bile?", "--out", "results")
    assert done.code == 0
    assert "abdomen-mr, MR" in done.out
    assert " mm" in done.out
    assert (tmp_path / "results" / "abdomen-mr.overlay.png").is_file()


def test_an_unknown_example_suggests_the_near_one(run):
    done = run("ask", "example:abdomen", "Which organ makes bile?")
    assert done.code == 2
    assert "abdomen-mr" in done.err
