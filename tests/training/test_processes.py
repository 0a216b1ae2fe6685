"""Several processes share a step's batches, and learn what one process learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from synthetic import write_data
from tiny import save_nano

from medisee.errors import DataError
from medisee.training import machine
from medisee.training.recipe import Recipe

RATES = {
    "mllm": 1e-4, "box_decoder": 1e-3, "fusion": 1e-3, "segmenter.mask_decoder": 1e-3,
    "projector": 1e-3,
}  # fmt: skip
WEIGHTS = [
    "text", "decision", "state", "category", "another", "l1", "giou", "bce", "dice",
    "similarity_js", "similarity_mse",
]  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    stage = {
        "name": "joint", "task": "joint", "steps": 3, "batch": 2, "questions": 3, "accumulate": 2,
        "warmup": 1, "validate_every": 1, "rates": RATES, "weights": dict.fromkeys(WEIGHTS, 1.0),
    }  # fmt: skip

    def make(name):
        return {
            "data": str(tmp_path / "data"), "init": str(tmp_path / "start"), "threads": 1,
            "out": str(tmp_path / name), "cache": str(tmp_path / "cache"), "records": 60,
            "precision": "fp32", "stages": [stage],
        }  # fmt: skip

    return make


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(recipe, tmp_path):
    write_data(tmp_path / "data")
    save_nano(tmp_path / "start", box_decoder="grounded", grounding_grid=8)
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    rows = {}
    for name, launcher in {"one": [sys.executable], "two": two}.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe(name)))
        command = [*launcher, "-m", "medisee", "train", str(path)]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("The trained model is in") == 1
        lines = (tmp_path / name / "joint" / "metrics.jsonl").read_text().splitlines()
        rows[name] = [json.loads(line) for line in lines]
        assert (tmp_path / name / "model" / "packed.safetensors").is_file()
    assert len(rows["one"]) == len(rows["two"]) == 3
    for one, two_ in zip(rows["one"], rows["two"], strict=True):
        one, two_ = ({k: v for k, v in row.items() if "loss" in k} for row in (one, two_))
        assert two_ == pytest.approx(one, rel=1e-3, abs=2e-4)
    one_, two_ = (
        load_file(tmp_path / name / "joint" / "checkpoint" / "trained.safetensors")
        for name in ("one", "two")
    )
    for name, value in one_.items():
        torch.testing.assert_close(two_[name], value, rtol=1e-3, atol=2e-4, msg=name)


def test_batches_that_cannot_be_shared_evenly_are_refused(recipe, monkeypatch):
    class Three:
        distributed_type, num_processes = machine.DistributedType.MULTI_CPU, 3

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(DataError, match="accumulate to a multiple"):
        machine._check(Three(), Recipe(**recipe("o")))


def test_processes_that_do_not_know_each_other_are_refused(recipe, monkeypatch):
    class Alone:
        distributed_type, num_processes = machine.DistributedType.NO, 1

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match="torchrun"):
        machine._check(Alone(), Recipe(**recipe("o")))


def test_an_unknown_tracker_is_named(recipe):
    with pytest.raises(DataError, match="paper and pencil"):
        machine.find_machine(Recipe(**recipe("o"), trackers=["paper and pencil"]))
