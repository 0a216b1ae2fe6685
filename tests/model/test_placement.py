"""Where a model runs: what is planned and told, that loading is exact, and what fewer bits do."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES, QUESTIONS, group_of, images, run, save_nano, tiny_config, tiny_model
from torch import nn

import medisee
from medisee.errors import ModelError
from medisee.examples import list_examples
from medisee.hub import find_model
from medisee.model import MediSeeModel, placement
from medisee.model.compact import CompactLinear
from medisee.model.make_random import random_config
from medisee.model.placement import (
    PRECISIONS,
    Placement,
    load_placed,
    plan_placement,
    spread_layers,
)

CPU = torch.device("cpu")


@torch.no_grad()  # torch's transformer layers take another path with gradients
def outputs(model):
    rows = [QUESTIONS[0] + group_of(model), QUESTIONS[2] + group_of(model)]
    output = run(model.eval(), images(model), rows, [0, 1])
    return {"logits": output.logits, **output.located}


def near(found, expected, name):
    """Weights in a mapped file are aligned differently: sums differ in the last bit."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=name)


def dice(a, b):
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 1.0 if total == 0 else 2 * np.count_nonzero(a & b) / total


# ---- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nano", "llava"])
@pytest.mark.parametrize("name", ["soft-grounded", "three-points"])
def test_loading_changes_nothing(kind, name, tmp_path):
    model = tiny_model(kind, **ARCHITECTURES[name])
    model.save_pretrained(tmp_path)
    loaded = load_placed(tmp_path, "cpu")
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for key, value in outputs(model).items():
        near(outputs(loaded)[key], value, key)


def test_packed_weights_load_alike(tmp_path):
    model = tiny_model()
    model.save_packed(tmp_path)
    expected = outputs(MediSeeModel.from_pretrained(tmp_path))
    for key, value in outputs(load_placed(tmp_path, "cpu")).items():
        near(value, expected[key], key)


def test_several_shards_load(tmp_path):
    model = tiny_model("llava")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    found = outputs(load_placed(tmp_path, "cpu"))
    for key, value in outputs(model).items():
        near(found[key], value, key)


def test_weights_lie_in_the_file_and_nowhere_else(tmp_path):
    tiny_model("llava").save_pretrained(tmp_path)
    loaded = load_placed(tmp_path, "cpu")
    size = (tmp_path / "model.safetensors").stat().st_size
    tower = loaded.mllm.model.vision_tower.embeddings.patch_embedding.weight
    # One storage for the whole mapped file: a tensor read by itself would own just its bytes.
    assert tower.untyped_storage().nbytes() >= tower.numel() * 4
    assert sum(p.numel() * p.element_size() for p in loaded.parameters()) <= size


@pytest.mark.parametrize("damage", ["missing", "shape", "unknown", "none"])
def test_weights_that_do_not_fit_are_named(damage, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state, name = load_file(path), "projector.layers.2.weight"
    path.unlink()
    if damage == "missing":
        del state[name]
    elif damage == "shape":
        state[name] = state[name][:, :-1].contiguous()
    elif damage == "unknown":
        state["surplus.weight"] = torch.zeros(3)
    if damage != "none":
        save_file(state, path)
    words = {
        "missing": rf"1 missing, first {name} \[32, 32\]",
        "shape": rf"{name} has shape \[32, 31\], expected \[32, 32\]",
        "unknown": "unknown weight surplus.weight",
        "none": "has no weights",
    }
    with pytest.raises(ModelError, match=words[damage]):
        load_placed(tmp_path, "cpu")


# ---- fewer bits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits, most", [(16, 0.004), (8, 0.012), (4, 0.15)])
@pytest.mark.parametrize("rows", [1, 50])
def test_a_compact_layer_is_close_to_the_whole_one(bits, most, rows):
    torch.manual_seed(0)
    layer = nn.Linear(128, 96)
    compact = CompactLinear(layer.weight.data, layer.bias.data, bits)
    x = torch.randn(2, rows, 128)
    with torch.no_grad():
        exact, found = layer(x), compact(x)
    assert found.shape == exact.shape
    assert found.dtype == x.dtype
    error = float((found - exact).norm() / exact.norm())
    assert 0 < error < most + 0.004


def test_compact_layers_of_zeros_give_zeros():
    for bits in (16, 8, 4):
        compact = CompactLinear(torch.zeros(4, 64), None, bits)
        assert torch.equal(compact(torch.randn(20, 64)), torch.zeros(20, 4))


def test_each_weight_is_within_half_a_step():
    weight = torch.randn(16, 128)
    eight = CompactLinear(weight, None, 8)
    assert ((eight.widened(torch.float32) - weight).abs() <= 0.501 * eight.scale).all()
    four = CompactLinear(weight, None, 4)
    step = four.scale.abs().repeat_interleave(32, dim=1)
    # The far end of a group's other sign has a step less.
    assert ((four.widened(torch.float32) - weight).abs() <= 1.001 * step).all()
    assert four.stored.numel() == weight.numel() / 2


def compare_precisions(folder, precision):
    """Dice of masks between bf16 and another precision, on random weights."""
    wide, narrow = (load_placed(folder, "cpu", each) for each in ("bf16", precision))
    kept = [m for m in narrow.modules() if isinstance(m, CompactLinear)]
    assert len(kept) == 14  # seven matrices in each of two layers
    first, second = outputs(wide), outputs(narrow)
    assert not torch.equal(first["logits"], second["logits"])
    masks = [each["mask_logits"].numpy() > 0 for each in (first, second)]
    return [dice(a, b) for a, b in zip(*masks, strict=True)]


@pytest.mark.parametrize("kind", ["nano", "llava"])
@pytest.mark.parametrize("seed", range(3))
def test_int8_keeps_masks_of_random_weights(kind, seed, tmp_path):
    tiny_model(kind, seed).save_pretrained(tmp_path)
    assert min(compare_precisions(tmp_path, "int8")) >= 0.98


@pytest.fixture(scope="module")
def nano_answers():
    """Nano's masks on the examples in each precision."""
    try:
        find_model("nano")
    except ModelError as error:
        pytest.skip(str(error))
    found = {}
    for precision in ("bf16", "int8"):
        model = medisee.load("nano", "cpu", "torch", precision)
        found[precision] = [
            [f.mask for f in model.open(f"example:{e.name}").ask(e.question, False).findings]
            for e in list_examples()
        ]
    return found


@pytest.mark.slow
def test_int8_keeps_nanos_masks(nano_answers):
    """Four bits do not (docs/fullsize.md), and so are never chosen by themselves."""
    for wide, narrow in zip(nano_answers["bf16"], nano_answers["int8"], strict=True):
        assert len(wide) == len(narrow)
        assert min([dice(a, b) for a, b in zip(wide, narrow, strict=True)], default=1) >= 0.98


# ---- plans ---------------------------------------------------------------------------------------


def test_small_models_stay_exact_and_large_ones_are_halved(monkeypatch):
    monkeypatch.setattr(placement, "free_memory", lambda device: None)
    assert plan_placement(tiny_config(), "cpu").precision == "fp32"
    assert plan_placement(random_config("llava-med-7b"), "cpu").precision == "bf16"


def test_what_7b_takes_is_about_what_is_known(monkeypatch):
    monkeypatch.setattr(placement, "free_memory", lambda device: None)
    config = random_config("llava-med-7b")
    found = {p: plan_placement(config, "cpu", p).weights / 1e9 for p in PRECISIONS}
    # 6.98 G numbers in the layers, 0.72 G in the rest.
    assert found["fp32"] == pytest.approx(30.8, rel=0.02)
    assert 14 < found["bf16"] < 17
    assert 7.5 < found["int8"] < 10.5
    assert 4 < found["int4"] < 7


def test_too_little_memory_is_told_with_what_it_would_take(monkeypatch):
    monkeypatch.setattr(placement, "free_memory", lambda device: 10**9)
    with pytest.raises(ModelError, match=r"not enough memory: .* GB of weights in bf16 on cpu"):
        plan_placement(random_config("llava-med-7b"), "cpu")


@pytest.mark.parametrize("free, precision", [(80, "bf16"), (16, "int8")])
def test_one_gpu_gets_what_fits(monkeypatch, free, precision):
    monkeypatch.setattr(placement, "find_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(placement, "free_memory", lambda device: free * 10**9)
    plan = plan_placement(random_config("llava-med-7b"), "cuda")
    assert plan.precision == precision
    assert plan.compute == torch.bfloat16


def test_several_gpus_share_the_layers_in_order():
    plan = Placement({"": torch.device("cuda", 0)}, "bf16", torch.bfloat16, 16 * 10**9, 10**9)
    devices = spread_layers(32, plan, [8 * 10**9, 8 * 10**9, 8 * 10**9])
    places = [devices[f"mllm.model.language_model.layers.{n}"].index for n in range(32)]
    assert places == sorted(places)
    assert set(places) == {0, 1, 2}
    assert devices[""].index == 0
    assert spread_layers(32, plan, [4 * 10**9, 4 * 10**9]) is None
    shared = Placement(devices, "bf16", torch.bfloat16, 1, 1)
    assert shared.device_of("mllm.model.language_model.layers.31.mlp.up_proj.weight").index == 2
    assert shared.device_of("mllm.lm_head.weight").index == 0


def test_memory_is_told_before_a_large_model_loads(tmp_path, monkeypatch, caplog):
    save_nano(tmp_path)
    monkeypatch.setattr(placement, "LARGE", 1000)
    with caplog.at_level(logging.WARNING, "medisee"):
        model = medisee.load(str(tmp_path))
    assert "GB of weights in bf16 on cpu" in caplog.text
    assert any(isinstance(m, CompactLinear) for m in model.runtime.model.modules())


def test_unknown_precisions_and_devices_are_refused(tmp_path):
    save_nano(tmp_path)
    with pytest.raises(ModelError, match="no precision 'int3'; choose fp32, bf16, int8, int4"):
        medisee.load(str(tmp_path), precision="int3")
    with pytest.raises(ModelError, match="device 'cuda:99' cannot be used"):
        medisee.load(str(tmp_path), device="cuda:99")
