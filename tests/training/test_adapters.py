"""LoRA: adapters train and nothing else of the language model, and they merge into its weights."""

from __future__ import annotations

import pytest
import torch
from tiny import QUESTIONS, images, run, tiny_model

from medisee.errors import DataError
from medisee.training.adapters import MARK, add_lora, merge
from medisee.training.loop import trainable
from medisee.training.recipe import Lora, Stage

STAGE = Stage(
    name="s",
    task="joint",
    steps=1,
    batch=1,
    rates={MARK: 1e-2},
)


def logits(model):
    return run(model, images(model), QUESTIONS, [0, 1, 0], locate=False).logits


@pytest.mark.parametrize("kind", ["nano", "llava"])
def test_adapters_train_and_merge(kind):
    model = tiny_model(kind)
    names = set(model.state_dict())
    before = logits(model).detach()
    add_lora(model, Lora(dropout=0.0))
    assert torch.equal(logits(model), before)  # they begin as nothing
    trainable(model, STAGE.model_copy(update={"rates": {MARK: 1e-2}}))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2  # matrices A and B, projections, layers
    assert all(".q_proj." in name or ".v_proj." in name for name in trained)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    tuned = logits(model).detach()
    assert (tuned - before).abs().max() > 1e-3
    merge(model)
    torch.testing.assert_close(logits(model), tuned, rtol=1e-4, atol=1e-5)
    assert set(model.state_dict()) == names


def test_an_adapters_base_is_frozen_and_a_parts_rate_does_not_reach_the_adapter():
    model = tiny_model()
    add_lora(model, Lora())
    groups = trainable(model, STAGE.model_copy(update={"rates": {"mllm.language_model": 1e-2}}))
    trained = {id(p) for group in groups for p in group["params"]}
    adapters = [p for name, p in model.named_parameters() if MARK in name]
    assert adapters and not trained & {id(p) for p in adapters}


def test_a_projection_that_is_not_there_is_named():
    with pytest.raises(DataError, match="no projection called nonsense"):
        add_lora(tiny_model(), Lora(projections=("nonsense",)))
