"""Schedule, parameter groups and checkpoints; what happens when a loss is not finite."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny import tiny_model

from medisee.errors import DataError
from medisee.training import loop
from medisee.training.loop import (
    MetricsLog,
    Work,
    load_checkpoint,
    save_checkpoint,
    schedule,
    train_step,
    trainable,
)
from medisee.training.recipe import Recipe, Stage

STAGE = Stage(
    name="heads",
    task="localise",
    steps=100,
    batch=2,
    rates={"box_decoder": 1e-2, "box_decoder.mlp.layers.2": 1e-3},
    weights={"l1": 1.0},
    warmup=10,
)
RECIPE = Recipe(data="d", init="i", out="o", precision="fp32", stages=[STAGE])


def test_schedule_warms_up_and_falls_to_a_twentieth():
    rates = [schedule(step, STAGE) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.525)
    assert rates[100] == pytest.approx(0.05)


def test_the_papers_schedule_falls_to_nothing():
    linear = STAGE.model_copy(update={"decay": "linear"})
    assert [schedule(step, linear) for step in (4, 10, 55, 100)] == pytest.approx([0.5, 1, 0.5, 0])


def test_accumulated_batches_are_one_batch_of_their_mean():
    class Pull:
        def __init__(self, model):
            self.model = model

        def losses(self, step, progress):
            last = self.model.box_decoder.mlp.layers[2].bias
            return {"l1": ((last - step) ** 2).sum()}

    model = tiny_model()
    stage = STAGE.model_copy(update={"accumulate": 3, "clip": 1e9})
    optimizer = torch.optim.SGD(trainable(model, stage))
    start = model.box_decoder.mlp.layers[2].bias.detach().clone()
    losses = step_of(model, Pull(model), optimizer, stage, 2)  # batches 6, 7 and 8
    assert losses["l1"] == pytest.approx(
        float(sum(((start - k) ** 2).sum() for k in (6, 7, 8))) / 3
    )
    expected = start - 1e-3 * schedule(2, stage) * 2 * (start - 7)
    torch.testing.assert_close(model.box_decoder.mlp.layers[2].bias.detach(), expected)


def test_parameters_train_at_the_rate_of_their_longest_prefix():
    model = tiny_model()
    groups = trainable(model, STAGE)
    assert [group["lr"] for group in groups] == [1e-2, 1e-3]
    assert [len(group["params"]) for group in groups] == [4, 2]
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in model.named_parameters() if n.startswith("box_decoder")}


def test_a_stage_that_trains_nothing_is_refused():
    with pytest.raises(DataError, match="nothing to train"):
        trainable(tiny_model(), STAGE.model_copy(update={"rates": {}}))


def test_a_prefix_that_fits_nothing_is_an_error():
    stage = STAGE.model_copy(update={"rates": {"box_decoder": 1e-3, "box_decode.": 1e-3}})
    with pytest.raises(DataError, match="box_decode"):
        trainable(tiny_model(), stage)


# ---- steps ---------------------------------------------------------------------------------------


class Task:
    """Pulls a box towards the corner; `spoil` may change the losses."""

    def __init__(self, model, spoil=lambda losses: losses):
        self.model, self.spoil = model, spoil

    def losses(self, step, progress):
        states = torch.randn(3, 32, generator=torch.Generator().manual_seed(step))
        boxes = self.model.box_decoder(states, torch.zeros(3, 32, 4, 4), torch.ones(3, 2))
        return self.spoil({"l1": boxes.abs().mean()})


def prepared(stage=STAGE):
    model = tiny_model()
    return model, torch.optim.AdamW(trainable(model, stage), weight_decay=stage.weight_decay)


def step_of(model, task, optimizer, stage, step):
    machine = Accelerator(cpu=True)
    return train_step(machine, Work(model, task), optimizer, RECIPE, stage, step)


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_a_step_moves_what_is_trained_and_nothing_else():
    model, optimizer = prepared()
    before = weights_of(model)
    losses = step_of(model, Task(model), optimizer, STAGE, 0)
    assert losses["total"] == losses["l1"] > 0
    for name, value in weights_of(model).items():
        assert torch.equal(value, before[name]) is not name.startswith("box_decoder"), name


def test_a_steps_rates_follow_the_schedule():
    model, optimizer = prepared()
    for step in (0, 4, 55):
        step_of(model, Task(model), optimizer, STAGE, step)
        factor = schedule(step, STAGE)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([1e-2 * factor, 1e-3 * factor])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(value):
    model, optimizer = prepared()
    before = weights_of(model)
    task = Task(model, lambda losses: {"l1": losses["l1"] * value})
    with pytest.raises(DataError, match="step 7"):
        step_of(model, task, optimizer, STAGE, 7)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())


def test_a_gradient_that_is_not_finite_stops_too():
    """sqrt(0) is 0, and its slope is not."""
    model, optimizer = prepared()
    before = weights_of(model)
    task = Task(model, lambda losses: {"l1": (losses["l1"] - losses["l1"].detach()).sqrt()})
    with pytest.raises(DataError, match="not finite"):
        step_of(model, task, optimizer, STAGE, 0)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())


def test_a_loss_without_weight_is_named():
    model, optimizer = prepared()
    task = Task(model, lambda losses: {**losses, "giou": losses["l1"]})
    with pytest.raises(DataError, match="giou"):
        step_of(model, task, optimizer, STAGE, 0)


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def two_checkpoints(tmp_path):
    """The folder after steps 1 and 2, and the weights at both."""
    model, optimizer = prepared()
    states = []
    for step in range(2):
        step_of(model, Task(model), optimizer, STAGE, step)
        save_checkpoint(model, optimizer, tmp_path, step + 1)
        states.append(weights_of(model))
        shutil.copytree(tmp_path / "checkpoint", tmp_path / f"copy{step + 1}")
    return tmp_path, states


def resumed(folder):
    model, optimizer = prepared()
    step = load_checkpoint(model, optimizer, folder)
    return step, weights_of(model), optimizer


def equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_without_checkpoint_a_stage_begins_at_zero(tmp_path):
    step, weights, _ = resumed(tmp_path)
    assert step == 0
    assert equal(weights, weights_of(tiny_model()))


def test_the_last_checkpoint_is_loaded(two_checkpoints):
    folder, states = two_checkpoints
    step, weights, optimizer = resumed(folder)
    assert step == 2
    assert equal(weights, states[1])
    assert all(state["step"] == 2 for state in optimizer.state.values())
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint", "copy1", "copy2"]
    assert set(load_file(folder / "checkpoint/trained.safetensors")) == {
        name for name in states[0] if name.startswith("box_decoder")
    }


class KillError(Exception):
    pass


class Killed:
    """Stops the writing of a checkpoint at its n-th step on the disk."""

    def __init__(self, monkeypatch, allowed):
        self.left = allowed
        for owner, name in (
            (Path, "rename"), (Path, "write_text"), (Path, "mkdir"), (shutil, "rmtree"),
            (loop, "save_file"), (torch, "save"),
        ):  # fmt: skip
            monkeypatch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, function):
        def call(*arguments, **named):
            if self.left == 0:
                raise KillError
            self.left -= 1
            return function(*arguments, **named)

        return call


@pytest.mark.parametrize("allowed", range(9))
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(two_checkpoints, allowed, monkeypatch):
    folder, states = two_checkpoints
    shutil.rmtree(folder / "checkpoint")
    shutil.copytree(folder / "copy1", folder / "checkpoint")
    model, optimizer = prepared()
    assert load_checkpoint(model, optimizer, folder) == 1
    step_of(model, Task(model), optimizer, STAGE, 1)
    with monkeypatch.context() as patch:
        Killed(patch, allowed)
        with pytest.raises(KillError):
            save_checkpoint(model, optimizer, folder, 2)
    step, weights, _ = resumed(folder)
    assert step in (1, 2)
    assert equal(weights, states[step - 1])
    # And the next run can write its own.
    save_checkpoint(model, optimizer, folder, 2)
    assert resumed(folder)[0] == 2
    assert not (folder / "checkpoint.part").exists()
    assert not (folder / "checkpoint.old").exists()


def test_a_full_disk_is_told_and_the_last_checkpoint_kept(two_checkpoints, monkeypatch):
    folder, states = two_checkpoints
    model, optimizer = prepared()
    for error in (OSError(28, "No space left on device"), RuntimeError("file write failed")):

        def full(*_, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(torch, "save", full)
            with pytest.raises(DataError, match=r"step 3 cannot be written.*make room"):
                save_checkpoint(model, optimizer, folder, 3)
        step, weights, _ = resumed(folder)
        assert step == 2
        assert equal(weights, states[1])
        assert not (folder / "checkpoint.part").exists()


def test_a_kill_between_the_renames_falls_back_to_the_old_one(two_checkpoints):
    folder, states = two_checkpoints
    (folder / "checkpoint").rename(folder / "checkpoint.part")
    (folder / "copy1").rename(folder / "checkpoint.old")
    step, weights, _ = resumed(folder)
    assert step == 1
    assert equal(weights, states[0])


def test_a_checkpoint_of_another_model_is_refused(two_checkpoints):
    folder, _ = two_checkpoints
    other = tiny_model(box_decoder="none", mask_prompts="text")
    with pytest.raises(DataError, match="another model"):
        load_checkpoint(other, None, folder)


def test_a_checkpoint_of_another_size_is_refused(two_checkpoints):
    folder, _ = two_checkpoints
    with pytest.raises(DataError, match="another model"):
        load_checkpoint(tiny_model(box_hidden=40), None, folder)


def test_metrics_are_appended_as_lines(tmp_path):
    log = MetricsLog(tmp_path / "new" / "metrics.jsonl")
    log.write("heads", 5, 1.23456, {"l1": 0.123456}, {"dice": 0.5})
    log.write("heads", 6, 2.0, {}, {})
    first, second = map(json.loads, (tmp_path / "new/metrics.jsonl").read_text().splitlines())
    assert first == {
        "stage": "heads",
        "step": 5,
        "seconds": 1.2,
        "loss_l1": 0.1235,
        "val_dice": 0.5,
    }
    assert second["step"] == 6
