"""`medisee data export` and `medisee data stats --figures` on a small built set."""

from __future__ import annotations

import json

import pytest
from engine.scenes import ABDOMEN, CT, add_image, write_index
from PIL import Image

from medisee.engine.build import Settings, build

pytest.importorskip("pyarrow")


@pytest.fixture
def built(tmp_path):
    root = tmp_path / "data"
    first = add_image(root, "a", ABDOMEN, split="train", licence="CC BY 4.0", **CT)
    other = add_image(root, "b", ABDOMEN, split="val", licence="secret", **CT)
    write_index(root, [first, other])
    return build(root, tmp_path / "set", Settings(1)).folder


def test_export_says_what_left_and_what_stayed(run, built, tmp_path):
    done = run("data", "export", built, "--to", "out", "--as", "parquet", "--redistributable")
    assert done.code == 0, done.err
    assert "about 1 images are in out" in done.out and "Left out: 1 images" in done.out
    assert (tmp_path / "out/README.md").is_file()
    again = run("data", "export", built, "--to", "out", "--as", "parquet")
    assert again.code == 2 and "choose a new folder" in again.err


def test_json_is_the_counts(run, built):
    done = run("data", "export", built, "--to", "o", "--as", "parquet", "--json")
    assert json.loads(done.out)["images"] == {"train": 1, "val": 1, "test": 0}


def test_images_must_be_named(run, built, tmp_path):
    done = run("data", "export", built, "--to", "out", "--as", "coco")
    assert done.code == 2 and "--data" in done.err
    assert run("data", "export", built, "--to", "o", "--as", "zip").code == 2
    assert not (tmp_path / "out").exists()


def test_figures_are_drawn(run, built, tmp_path):
    done = run("data", "stats", built, "--figures", "figures", "--json")
    assert done.code == 0 and json.loads(done.out)["category_images"]["liver"] == 2
    pictures = sorted(path.stem for path in (tmp_path / "figures").iterdir())
    assert pictures == [
        "category_images", "category_records", "lengths", "perspectives", "word_cloud",
    ]  # fmt: skip
    for path in (tmp_path / "figures").iterdir():
        with Image.open(path) as picture:
            assert picture.convert("L").getextrema() == (pytest.approx(30, abs=60), 255)
