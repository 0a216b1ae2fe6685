"""`medisee batch`: all images of a folder, going on later, and what failed and why."""

from __future__ import annotations

import json
import shutil

import nibabel
import numpy as np
import pytest
from dicom_series import write_series
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "scans"
    (root / "deep").mkdir(parents=True)
    Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(48, 64)).save(root / "a.png")
    shutil.copy(root / "a.png", root / "a.bmp.png")
    shutil.copy(root / "a.png", root / "deep" / "b.png")
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 8, 3), np.int16), np.eye(4)), root / "v.nii.gz")
    write_series(root / "ct", depth=3)
    (root / "broken.png").write_bytes(b"no image")
    (root / "notes.txt").write_text("not an image")
    (tmp_path / "questions.txt").write_text("# what to ask\nWhere is it?\n\nAnd the spleen?\n")
    return root


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_results_lie_as_the_images_do_and_failures_are_told(run, fake, folder, tmp_path):
    done = run("batch", "scans", "--questions", "questions.txt", "--out", "results")
    assert done.code == 4
    assert "5 of 6 images answered" in done.out
    assert "broken.png" in done.out
    assert (tmp_path / "results" / "deep" / "b.q2.overlay.png").is_file()
    assert (tmp_path / "results" / "v.q1.1.mask.nii.gz").is_file()
    assert (tmp_path / "results" / "ct.q1.1.mask.nii.gz").is_file()
    report = {line["name"]: line for line in lines(tmp_path / "results" / "report.jsonl")}
    assert set(report) == {"a.png", "a.bmp.png", "deep/b.png", "v.nii.gz", "ct", "broken.png"}
    assert "not an image" in report["broken.png"]["failed"]
    assert report["a.png"]["failed"] is None


def test_it_goes_on_and_tries_again_what_failed(run, fake, folder, tmp_path):
    run("batch", "scans", "-q", "questions.txt", "-o", "results")
    shutil.copy(folder / "a.png", folder / "broken.png")
    again = run("batch", "scans", "-q", "questions.txt", "-o", "results")
    assert again.code == 0
    assert "5 of them done before" in again.err
    assert len(lines(tmp_path / "results" / "report.jsonl")) == 7


def test_questions_of_their_own(run, fake, folder, tmp_path):
    (tmp_path / "own.jsonl").write_text(
        '{"image": "deep/b.png", "question": "Where?"}\n', encoding="utf-8"
    )
    done = run("batch", "scans", "-q", "own.jsonl", "-o", "results")
    assert done.code == 0
    assert "1 of 1" in done.out
    answer = json.loads((tmp_path / "results" / "deep" / "b.json").read_text(encoding="utf-8"))
    assert answer["question"] == "Where?"


def test_names_that_differ_in_their_suffix_only_keep_it(run, fake, folder, tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "a.bmp")
    run("batch", "scans", "-q", "questions.txt", "-o", "results")
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert {"a.png.q1.json", "a.bmp.q1.json"} <= names | {"a.q1.json"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "-q", "questions.txt"], "not a folder"),
        (["scans", "-q", "missing.txt"], "questions"),
        (["scans", "-q", "bad.jsonl"], "line 1"),
        (["scans", "-q", "questions.txt", "--as", "pdf"], "pdf"),
        (["scans", "-q", "questions.txt", "--model", "nanoo"], "nano"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, fake, folder, tmp_path, words, message):
    (tmp_path / "bad.jsonl").write_text("{}\n")
    done = run("batch", *words, "-o", "results")
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "results").exists()
