"""Recipes: read, checked, and errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from medisee.errors import DataError
from medisee.model.losses import PAPER_WEIGHTS
from medisee.training.recipe import Recipe, read_recipe

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STAGE = {
    "name": "heads", "task": "localise", "steps": 3, "batch": 2, "rates": {"box_decoder": 1e-3},
    "weights": {"l1": 1, "giou": 1},
}  # fmt: skip
RECIPE = {"data": "d", "init": "nano", "out": "o", "stages": [STAGE]}


def written(tmp_path, **changes):
    values = {k: v for k, v in {**RECIPE, **changes}.items() if v is not ...}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_recipe_is_read_with_its_defaults(tmp_path):
    recipe = read_recipe(written(tmp_path))
    assert isinstance(recipe, Recipe)
    assert recipe.precision == "bf16"
    assert recipe.stages[0].steps == 3
    assert recipe.stages[0].weight_decay == 0.01


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": ...}, "data"),
        ({"stages": ...}, "stages"),
        ({"learning_rate": 1}, "learning_rate"),
        ({"precision": "fp8"}, "precision"),
        ({"threads": 0}, "threads"),
        ({"seed": "many"}, "seed"),
        ({"base": "bf16", "precision": "fp32"}, "precision: bf16"),
        ({"base": "int8"}, "lora"),
        ({"stages": [{**STAGE, "templates": 1.5}]}, r"stages\.0\.templates"),
        ({"stages": [{**STAGE, "task": "dance"}]}, r"stages\.0\.task"),
        ({"stages": [{**STAGE, "steps": 0}]}, r"stages\.0\.steps"),
        ({"stages": [{**STAGE, "step": 5}]}, r"stages\.0\.step\b"),
        ({"stages": [STAGE, {"name": "x"}]}, r"stages\.1\.task"),
        ({"stages": [{**STAGE, "rates": {"mllm": "fast"}}]}, r"stages\.0\.rates\.mllm"),
    ],
)
def test_the_wrong_field_is_named(tmp_path, changes, words):
    with pytest.raises(DataError, match=words) as caught:
        read_recipe(written(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert "recipe.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"- a\n- b\n", b"just text", b"a: [1, 2", b"a: b: c", b"\xff\xfe\x00bin\x80"]
)
def test_what_is_no_recipe_is_refused(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"recipe\.yaml"):
        read_recipe(path)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_recipe_that_cannot_be_opened(tmp_path, name):
    with pytest.raises(DataError, match="cannot read the recipe"):
        read_recipe(tmp_path / name)


TERMS = {
    "localise": {"l1", "giou", "heat"},
    "masks": {"bce", "dice"},
    "language": {"text", "decision", "state", "category"},
    "align": set(),
    "joint": {"text", "bce", "dice", "l1", "giou"},
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_weigh_every_loss_of_their_stages(path):
    recipe = read_recipe(path)
    assert recipe.stages
    for stage in recipe.stages:
        assert TERMS[stage.task] <= stage.weights.keys(), stage.name


def test_the_full_size_recipe_has_the_papers_values():
    recipe = read_recipe(CONFIGS / "llava-med-7b.yaml")
    assert recipe.lora is not None
    assert (recipe.lora.rank, recipe.precision, recipe.recompute) == (8, "bf16", True)
    assert not recipe.emits_states
    first, second = recipe.stages
    for stage in recipe.stages:
        assert set(stage.rates.values()) == {3e-4}
        assert (stage.warmup, stage.decay) == (100, "linear")
        assert (stage.batch * stage.questions, stage.accumulate) == (15, 10)
    assert (first.templates, second.templates) == (0.7, 0.0)
    assert first.weights == {k: v for k, v in PAPER_WEIGHTS.items() if "similarity" not in k}
    assert second.weights == dict(PAPER_WEIGHTS)


def test_only_recipes_that_teach_states_make_models_that_name_by_them():
    assert read_recipe(CONFIGS / "nano.yaml").emits_states
