"""`medisee convert`: what it says, and that what it writes answers."""

from __future__ import annotations

import json

import foreign
import pytest
import torch

TINY = foreign.Whole()


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    torch.save(foreign.random_weights(foreign.medisee(TINY)), folder / "pytorch_model.bin")
    beside = {"llm": {"num_attention_heads": 4}}
    (folder / "tiny_config.json").write_text(json.dumps(beside), encoding="utf-8")
    return folder


def test_it_tells_what_it_recognised_and_what_is_lacking(run, source, tmp_path):
    done = run("convert", source, "--to", tmp_path / "ours", "--dtype", "bf16")
    assert done.code == 0
    text = " ".join(done.out.split())
    assert "Recognised the authors' MediSee." in text
    assert "no tokenizer beside the weights" in text
    assert (tmp_path / "ours/conversion.json").is_file()


def test_json(run, source, tmp_path):
    done = run("convert", source, "--to", tmp_path / "ours", "--json")
    values = json.loads(done.out)
    assert values["kind"] == "medisee"
    assert values["folder"] == str(tmp_path / "ours")


def test_a_folder_that_is_there_is_not_replaced(run, source, tmp_path):
    run("convert", source, "--to", tmp_path / "ours")
    done = run("convert", source, "--to", tmp_path / "ours")
    assert done.code == 2
    assert "add --overwrite" in done.err
    assert run("convert", source, "--to", tmp_path / "ours", "--overwrite").code == 0


def test_a_model_without_tokenizer_says_so_when_asked(run, source, scan, tmp_path):
    run("convert", source, "--to", tmp_path / "ours")
    done = run("ask", scan, "Where is it?", "--model", tmp_path / "ours")
    assert done.code == 2
    assert "has no processor" in done.err


def test_what_is_no_checkpoint_is_told_in_one_line(run, tmp_path):
    done = run("convert", tmp_path / "nowhere", "--to", tmp_path / "ours")
    assert done.code == 2
    assert done.err.strip().count("\n") == 0
    assert "no file or folder" in done.err


def test_the_golden_checkpoint_converts(run, shared, tmp_path):
    done = run("convert", shared / "golden/mini", "--to", tmp_path / "ours")
    assert done.code == 0
    assert "forward.safetensors" in done.out
    assert (tmp_path / "ours/model.safetensors").is_file()
