"""Finding models by name, folder or hub id."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from medisee import hub
from medisee.errors import MissingExtraError, ModelError


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_folder_is_found(model):
    assert hub.find_model(str(model)) == model


@pytest.mark.parametrize(
    ("missing", "word"), [("config.json", "no config.json"), ("model.safetensors", "no weights")]
)
def test_a_folder_that_is_no_model(model, missing, word):
    (model / missing).unlink()
    with pytest.raises(ModelError, match=word):
        hub.find_model(str(model))


def test_a_file_is_no_model(model):
    with pytest.raises(ModelError, match="is a file"):
        hub.find_model(str(model / "config.json"))


@pytest.mark.parametrize("name", ["nanoo", "", "a b", "../nowhere", "/nowhere/at/all", "~nobody"])
def test_unknown_names_say_what_is_known(name):
    with pytest.raises(ModelError, match="nano"):
        hub.find_model(name)


def test_nano_taken_out_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(hub.SHIPPED, "nano", tmp_path / "gone")
    with pytest.raises(ModelError, match="--model"):
        hub.find_model("nano")


def test_a_hub_id_is_downloaded_to_the_cache(monkeypatch, model, tmp_path):
    asked = {}
    errors = ModuleType("huggingface_hub.errors")
    for name in ("HfHubHTTPError", "HFValidationError", "LocalEntryNotFoundError"):
        setattr(errors, name, type(name, (Exception,), {}))
    fake = ModuleType("huggingface_hub")
    fake.snapshot_download = lambda hub_id, cache_dir: asked.update(hub_id=hub_id) or str(model)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    assert hub.find_model("someone/medisee-large") == model
    assert asked == {"hub_id": "someone/medisee-large"}

    def offline(*_, **__):
        raise errors.LocalEntryNotFoundError

    fake.snapshot_download = offline
    with pytest.raises(ModelError, match="network"):
        hub.find_model("someone/medisee-large")


def test_a_hub_id_without_the_packages_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"medisee\[torch\]"):
        hub.find_model("someone/medisee-large")


def test_downloaded_models_are_listed(monkeypatch, tmp_path):
    snapshot = tmp_path / "hub" / "models--someone--large" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path)
    entry = {entry.name: entry for entry in hub.known_models()}["someone/large"]
    assert (entry.folder, entry.size, entry.ready) == (snapshot, 2, False)


def test_the_card_states_licence_and_sources(model):
    assert hub.model_info(model)["licence"] == "not stated"
    (model / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\ndatasets: [acdc, btcv]\n---\n")
    info = hub.model_info(model)
    assert (info["licence"], info["sources"]) == ("CC-BY-NC-SA-4.0", ["acdc", "btcv"])


@pytest.mark.parametrize("text", ["---\na: [\n---\n", "[1]", '{"liver": 3}', '{"liver": {"n": 1}}'])
def test_a_broken_folder_is_a_model_error(model, text):
    (model / ("README.md" if text.startswith("---") else "targets.json")).write_text(text)
    with pytest.raises(ModelError):
        hub.model_info(model)
