"""`medisee models` and `medisee targets`: what is known without loading a model."""

from __future__ import annotations

import json

import pytest

from medisee import hub


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache folder instead of the user's."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(hub, "cache_folder", lambda: folder)
    monkeypatch.setattr("medisee.commands.models.cache_folder", lambda: folder)
    return folder


@pytest.fixture
def model(tmp_path):
    """A model folder with a card, targets and pretended weights."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 1500)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\n# Mine\n")
    targets = {
        "liver": {"n_train": 1143, "n_test": 21, "dice": 0.814},
        "left kidney": {"n_train": 30, "n_test": 0, "dice": None},
    }
    (folder / "targets.json").write_text(json.dumps(targets))
    return folder


def test_models_lists_the_shipped_one(run):
    done = run("models")
    assert done.code == 0
    assert "nano" in done.out
    assert "Cache: " in done.out


def test_models_as_json_and_clearing_the_cache(run, cache):
    (cache / "features").mkdir(parents=True)
    (cache / "features" / "a.npy").write_bytes(b"x" * 100)
    listed = json.loads(run("models", "--json").out)
    assert listed["cache"] == {"folder": str(cache), "bytes": 100, "freed": None}
    assert listed["models"][0]["name"] == "nano"
    assert "Cleared 100 B." in run("models", "--clear-cache").out
    assert not cache.exists()


def test_targets_shows_scores_and_says_what_was_not_measured(run, model):
    done = run("targets", "--model", model)
    assert done.code == 0
    kidney, liver = (line for line in done.out.splitlines() if "kidney" in line or "liver" in line)
    assert kidney.split() == ["left", "kidney", "30", "0", "not", "measured"]
    assert liver.split() == ["liver", "1,143", "21", "0.81"]


def test_targets_can_be_searched_and_read_by_machines(run, model):
    found = json.loads(run("targets", "KID", "--model", model, "--json").out)
    assert found == [{"name": "left kidney", "n_train": 30, "n_test": 0, "dice": None}]
    assert "None of the 2 targets" in run("targets", "xyz", "--model", model).out


def test_targets_of_a_model_without_a_list(run, model):
    (model / "targets.json").unlink()
    assert "does not say" in run("targets", "--model", model).out


def test_targets_of_a_broken_list_is_one_line(run, model):
    (model / "targets.json").write_text("[1, 2")
    done = run("targets", "--model", model)
    assert done.code == 2
    assert done.err.count("\n") == 1
