"""The paper's form, tiny: a LLaVA with a tower of its own, end to end through `train(recipe)`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from synthetic import write_data
from tiny import save_llava

import medisee
from medisee import training
from medisee.data.mlmr_sd import write_records
from medisee.data.sa_med2d import Index
from medisee.engine import compose_records
from medisee.entities import load_entities
from medisee.model.losses import PAPER_WEIGHTS
from medisee.training import loop
from medisee.training.language import mixed
from medisee.training.recipe import Recipe

RATES = {
    ".lora_": 3e-3, "mllm.model.language_model.embed_tokens": 3e-3, "mllm.lm_head": 3e-3,
    "fusion": 3e-3, "box_decoder": 3e-3, "projector": 3e-3, "segmenter.mask_decoder": 3e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Data, a question set built from them, and an untrained model."""
    root = tmp_path_factory.mktemp("fullsize")
    index = Index.open(write_data(root / "data"))
    mix = {"implicit": 0.7, "absent": 0.2, "several": 0.1}
    for split in ("train", "val"):
        records = compose_records(index, load_entities(), split, 40, 5, mix)
        write_records(root / "qa" / f"{split}.jsonl", records)
    save_llava(root / "start")
    return root


@pytest.fixture(autouse=True)
def few_questions(monkeypatch):
    monkeypatch.setattr(training, "VAL_RECORDS", 20)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recipe(folders, tmp_path):
    def make(steps=2, **changes):
        stage = {
            "task": "joint", "batch": 2, "questions": 2, "warmup": 2, "decay": "linear",
            "validate_every": 100, "true_boxes": (0.0, 0.0), "rates": RATES,
        }  # fmt: skip
        plain = {name: w for name, w in PAPER_WEIGHTS.items() if "similarity" not in name}
        stages = [
            {**stage, "name": "mixture", "steps": steps, "templates": 0.7, "weights": plain},
            {**stage, "name": "reasoning", "steps": 2, "templates": 0.0, "weights": PAPER_WEIGHTS},
        ]
        values = {
            "data": str(folders / "data"), "qa": str(folders / "qa"), "recompute": True,
            "init": str(folders / "start"), "out": str(tmp_path / "run"), "threads": 1,
            "cache": str(folders / "features"), "records": 60, "checkpoint_every": 2,
            "base": "bf16", "lora": {"rank": 4}, "stages": stages,
        }  # fmt: skip
        return Recipe(**{**values, **changes})

    return make


def test_both_stages_make_a_model_that_answers(recipe, folders, monkeypatch):
    losses, original = [], loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *a: losses.append(original(*a)) or losses[-1])
    folder = training.train(recipe(steps=24))
    first, second = losses[:24], losses[24:]
    assert {"text", "bce", "dice", "l1", "giou", "total"} == set(first[0])
    assert {"similarity_js", "similarity_mse"} <= set(second[0])
    assert sum(row["total"] for row in first[-6:]) < 0.9 * sum(row["total"] for row in first[:6])
    names = {path.name for path in folder.iterdir()}
    assert not {"categories.safetensors", "phrases.json"} & names
    model = medisee.load(str(folder), device="cpu")
    image = next(Index.open(folders / "data").records("val")).image
    answer = model.open(folders / "data" / image).ask("Segment the liver.")
    assert answer.findings or answer.refusal
    assert all(finding.mask.shape == (48, 64) for finding in answer.findings)
    rows = (folder.parent / "mixture" / "metrics.jsonl").read_text().splitlines()
    assert "val_named_referring" not in json.loads(rows[-1])


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly_where_it_was(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "finish", lambda *_: None)
    training.train(recipe(steps=4, out=str(tmp_path / "whole")))
    steps, original = [], loop.train_step

    def killing(*arguments):
        steps.append(arguments[-1])
        if len(steps) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", killing)
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe(steps=4, out=str(tmp_path / "killed")))
    training.train(recipe(steps=4, out=str(tmp_path / "killed")))
    for stage in ("mixture", "reasoning"):
        whole, resumed = (
            load_file(tmp_path / run / stage / "checkpoint" / "trained.safetensors")
            for run in ("whole", "killed")
        )
        assert any(".lora_B" in name and value.abs().max() > 0 for name, value in whole.items())
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_records_are_the_sets_and_templates(recipe, folders):
    records = training.prepare(recipe()).train_records
    built = [record for record in records if record.kind != "referring"]
    lines = Path(folders / "qa" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert {record.id for record in built} == {json.loads(line)["id"] for line in lines}
    assert len(records) > len(built) > 0
    share = mixed(records, 0.7, 0)
    named = sum(record.kind == "referring" for record in share)
    assert named / len(share) == pytest.approx(0.7, abs=0.03)
    assert mixed(records, 0.7, 0) == share
    assert mixed(records, None, 0) == records
    assert {record.kind for record in mixed(records, 1.0, 0)} == {"referring"}
    assert "referring" not in {record.kind for record in mixed(records, 0.0, 0)}
