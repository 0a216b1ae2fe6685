"""`medisee data import`, as its function is called by the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from medisee.commands.data_import import import_data
from medisee.errors import DataError


@pytest.fixture
def pairs(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    grey = np.random.default_rng(0).integers(0, 255, (30, 30)).astype(np.uint8)
    mask = np.zeros((30, 30), np.uint8)
    mask[5:15, 5:15] = 255
    for name in ("a", "b"):
        Image.fromarray(grey).save(tmp_path / "in" / "images" / f"{name}.png")
    Image.fromarray(mask).save(tmp_path / "in" / "masks" / "a.png")
    return tmp_path / "in"


def call(*argv):
    app = typer.Typer()
    app.command()(import_data)
    return CliRunner().invoke(app, [str(word) for word in argv])


def test_it_says_what_came_and_what_did_not(pairs, tmp_path):
    done = call(pairs, "--to", tmp_path / "out", "--label", "polyp", "--modality", "endoscopy")
    assert done.exit_code == 0
    assert "1 of 2 images with 1 masks of 1 classes" in " ".join(done.stdout.split())
    assert "images/b.png: the image has no mask" in " ".join(done.stderr.split())
    assert (tmp_path / "out/images/endoscopy_00--in--a.png").is_file()


def test_json_is_the_report_and_nothing_else(pairs, tmp_path):
    done = call(pairs, "--to", tmp_path / "out", "--label", "polyp", "--json")
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "out/work/import-in.json").read_text())
    assert (report["images"], report["images_found"]) == (1, 2)


def test_nothing_imported_is_an_error_after_the_report(pairs, tmp_path):
    done = call(pairs, "--to", tmp_path / "out", "--label", "polyp", "--min-area", "0.9")
    assert isinstance(done.exception, DataError)
    assert "smaller than the least area" in " ".join(done.stdout.split())
