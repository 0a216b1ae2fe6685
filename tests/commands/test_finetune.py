"""`medisee finetune`: how data come in, what is checked before a run, what is told after it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tiny import save_nano

from medisee.training import finetune as tuning


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_nano(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def runs(monkeypatch, model):
    """The data and settings that were run; training itself is left out."""
    done = []
    monkeypatch.setattr(
        tuning, "finetune", lambda own, settings: done.append((own, settings)) or model
    )
    return done


@pytest.fixture
def pairs(tmp_path):
    """Images and masks of the same names."""
    random = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "scans" / folder).mkdir(parents=True)
    for number in range(4):
        pixels = random.integers(0, 256, (64, 64)).astype(np.uint8)
        mask = np.zeros((64, 64), np.uint8)
        mask[20:40, 10 + number : 40] = 255
        Image.fromarray(pixels).save(tmp_path / "scans" / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "scans" / "masks" / f"{number}.png")
    return tmp_path / "scans"


def test_pairs_are_brought_in_and_held_out_images_are_measured(run, runs, pairs, model, tmp_path):
    out = tmp_path / "out"
    done = run(
        "finetune", "--data", str(pairs), "--label", "gizmo", "--init", str(model),
        "--out", str(out), "--steps", "5",
    )  # fmt: skip
    assert done.code == 0, done.err
    [(own, settings)] = runs
    assert own.labels == ("gizmo",)
    assert own.index.root == out / "data"
    assert settings.steps == 5
    text = " ".join(done.out.split())
    assert "gizmo from 3 images; 1 are held out" in text
    assert "gizmo: Dice" in text
    assert f"--model {model}" in text.replace(" /", "/").replace("--model/", "--model /")


def test_nothing_is_begun_where_something_lies(run, runs, pairs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    done = run("finetune", "--data", str(pairs), "--label", "gizmo", "--out", str(tmp_path / "out"))
    assert done.code == 2
    assert "--resume" in done.err
    assert not runs


@pytest.mark.parametrize("text", ["- name: gizmo", "no list"])
def test_a_description_that_breaks_the_form_is_named(run, runs, pairs, tmp_path, text):
    (tmp_path / "words.yaml").write_text(text)
    done = run(
        "finetune", "--data", str(pairs), "--label", "gizmo", "--out", str(tmp_path / "out"),
        "--describe", str(tmp_path / "words.yaml"),
    )  # fmt: skip
    assert done.code == 2
    assert "words.yaml" in done.err
    assert not runs
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_kind_is_refused(run, runs, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run("finetune", "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "out"))
    assert done.code == 2
    assert "formats" in done.err
    assert not runs
