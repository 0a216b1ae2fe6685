"""How weights are held while they are trained: precision of the base, layers that run again."""

from __future__ import annotations

import pytest
import torch
from tiny import QUESTIONS, images, run, tiny_model

from medisee.errors import DataError
from medisee.training.recipe import Recipe
from medisee.training.recompute import recompute_layers
from medisee.training.weights import load_trainable, whole_model

HEADS = ("fusion.", "box_decoder.", "projector.", "segmenter.mask_decoder.")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "llava"
    tiny_model("llava").save_pretrained(folder)
    return folder


def recipe(**changes):
    rates = {".lora_": 1e-3, "mllm.lm_head": 1e-3, **dict.fromkeys(HEADS, 1e-3)}
    stage = {"name": "s", "task": "joint", "steps": 1, "batch": 1, "rates": rates}
    values = {"data": "d", "init": "i", "out": "o", "lora": {"rank": 2}, "stages": [stage]}
    return Recipe(**{**values, **changes})


def test_frozen_weights_go_to_bf16_and_what_is_trained_stays_exact(start):
    model = load_trainable(start, recipe(base="bf16"), CPU)
    for name, value in model.named_parameters():
        exact = ".lora_" in name or name.startswith((*HEADS, "mllm.lm_head"))
        assert value.dtype == (torch.float32 if exact else torch.bfloat16) or (
            name.startswith("segmenter.") and "vision_encoder" not in name
        ), name
    with torch.autocast("cpu", torch.bfloat16):
        output = run(model, images(model), QUESTIONS, [0, 1, 0], locate=False)
    assert torch.isfinite(output.logits).all()


def test_by_default_all_is_exact(start):
    model = load_trainable(start, recipe(), CPU)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_the_whole_model_has_the_starts_names(start):
    model = load_trainable(start, recipe(base="bf16"), CPU)
    names = load_trainable(start, recipe(lora=None), CPU).state_dict().keys()
    assert whole_model(model, start, recipe(base="bf16")).state_dict().keys() == names


def test_integer_weights_need_a_package_and_say_so(start, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(DataError, match="bitsandbytes"):
        load_trainable(start, recipe(base="int4"), CPU)


@pytest.mark.parametrize("kind", ["nano", "llava"])
def test_layers_that_run_again_give_the_same_gradients(kind):
    found = []
    for again in (False, True):
        model = tiny_model(kind).train()
        if again:
            recompute_layers(model.mllm.get_decoder())
        rows = [[*q, 20, 91, 22, 90, 23] for q in QUESTIONS]
        output = run(model, images(model), rows, [0, 1, 0], decode=False)
        (output.logits.square().mean() + output.located.similarity.square().mean()).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((output.logits.detach(), gradients))
    (logits, gradients), (logits_again, gradients_again) = found
    assert torch.equal(logits, logits_again)
    assert gradients.keys() == gradients_again.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(gradients_again[name], value, msg=name)


def test_layers_that_run_again_keep_less():
    kept = []
    for again in (False, True):
        model = tiny_model("llava").train()
        if again:
            recompute_layers(model.mllm.get_decoder())
        numbers = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, numbers=numbers: numbers.append(x.numel()) or x, lambda x: x
        ):
            run(model, images(model), QUESTIONS, [0, 1, 0], locate=False)
        kept.append(sum(numbers))
    assert kept[1] < 0.7 * kept[0]
