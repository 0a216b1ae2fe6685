"""`medisee models make-random`, and `medisee models` beside it."""

from __future__ import annotations

import pytest

from medisee.errors import ModelError
from medisee.hub import find_model
from medisee.model.make_random import SHAPES, random_config
from medisee.processing import MediSeeProcessor


@pytest.fixture
def nano():
    try:
        return find_model("nano")
    except ModelError as error:
        pytest.skip(str(error))


def test_it_writes_a_folder_that_can_be_asked(run, nano, tmp_path):
    target = tmp_path / "random"
    shape = ("--like", "llava-med-7b", "--scale", "1e-6")
    done = run("models", "make-random", *shape, "--to", target)
    assert done.code == 0
    assert "M random numbers" in done.out
    assert find_model(str(target)) == target
    processor = MediSeeProcessor.from_pretrained(target)
    assert (processor.config.clip_size, processor.config.segmenter_size) == (336, 1024)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--like", "gpt-9"), "choose llava-med-7b"),
        (("--like", "lisa-7b", "--scale", "2"), "is 2.0"),
    ],
)
def test_what_cannot_be_made_is_told(run, nano, tmp_path, arguments, words):
    done = run("models", "make-random", *arguments, "--to", tmp_path / "x")
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("like", SHAPES)
def test_the_whole_shape_is_the_real_one(like):
    config = random_config(like)
    text = config.mllm.text_config
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (4096, 32, 32)
    assert text.intermediate_size == {"llava-med-7b": 14336, "lisa-7b": 11008}[like]
    assert config.router_hidden == 1024
    assert (
        list(config.segmenter.sam_config.vision_config.global_attn_indexes)
        == {
            "llava-med-7b": [2, 5, 8, 11],
            "lisa-7b": [7, 15, 23, 31],
        }[like]
    )


def test_models_alone_still_lists(run):
    done = run("models")
    assert done.code == 0
    assert "nano" in done.out
