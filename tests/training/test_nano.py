"""Nano from its parents: renamed weights, the cut tokenizer, kept layers."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import CORPUS, tiny_tokenizer
from transformers import LlamaConfig

from medisee.model.segmenter import Segmenter
from medisee.training.nano import (
    NanoSizes,
    build_nano,
    cut_tokenizer,
    litemedsam_config,
    litemedsam_state,
)


@pytest.fixture(scope="module")
def meta_segmenter():
    with torch.device("meta"):
        return Segmenter(litemedsam_config())


def test_litemedsams_names_become_exactly_ours(shared, meta_segmenter):
    text = (shared / "golden/systems/litemedsam/keys_real.json").read_text()
    official = {
        name: torch.empty(facts["shape"], device="meta") for name, facts in json.loads(text).items()
    }
    ours = meta_segmenter.state_dict()
    found = litemedsam_state(official)
    assert found.keys() == ours.keys()
    for name, value in found.items():
        assert value.shape == ours[name].shape, name


@pytest.fixture
def tokenizer_file(tmp_path):
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_cut_tokenizer_still_reads_everything(tokenizer_file):
    whole = tiny_tokenizer()
    cut = cut_tokenizer(tokenizer_file, 300)
    for text in (CORPUS, "Überraschung \U0001f9e0 [SEG]", ""):
        ids = cut.encode(text, add_special_tokens=False).ids
        assert max(ids, default=0) < 300
        assert cut.decode(ids) == text
    assert cut.get_vocab_size() == 300
    vocabulary = whole.get_vocab()
    assert all(vocabulary[token] == index for token, index in cut.get_vocab().items())
    assert len(cut.encode(CORPUS).ids) > len(whole.encode(CORPUS).ids)


def test_only_chat_tokens_stay_special(tokenizer_file):
    cut = cut_tokenizer(tokenizer_file, 300)
    names = {token.content for token in cut.get_added_tokens_decoder().values()}
    assert names == {"<|im_start|>", "<|im_end|>"}


WIDTH, LAYERS = 32, 4


def language_weights(vocabulary):
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32), "mlp.gate_proj": (48, 32), "mlp.up_proj": (48, 32),
        "mlp.down_proj": (32, 48), "input_layernorm": (32,), "post_attention_layernorm": (32,),
    }  # fmt: skip
    weights = {
        "model.norm.weight": torch.randn(32, generator=generator),
        "model.embed_tokens.weight": torch.randn(vocabulary, 32, generator=generator),
    }
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = torch.randn(shape, generator=generator)
    return weights


def test_an_untrained_nano_keeps_the_layers_and_the_first_tokens(tokenizer_file, monkeypatch):
    segmenter = Segmenter(litemedsam_config())
    monkeypatch.setattr("medisee.training.nano.litemedsam_state", lambda weights: weights)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=LAYERS, vocab_size=tiny_tokenizer().get_vocab_size(),
    )  # fmt: skip
    weights = language_weights(config.vocab_size)
    kept = config.vocab_size - 8  # three special tokens and the last five merges go
    model, processor = build_nano(
        segmenter.state_dict(),
        weights,
        config,
        tokenizer_file,
        NanoSizes(layers=(0, 3), vocabulary=kept, grid=4),
    )
    text = model.mllm.language_model
    for new, old in enumerate((0, 3)):
        assert torch.equal(
            text.layers[new].self_attn.q_proj.weight,
            weights[f"model.layers.{old}.self_attn.q_proj.weight"],
        )
    embeddings = weights["model.embed_tokens.weight"]
    assert torch.equal(text.embed_tokens.weight[:kept], embeddings[:kept])
    assert torch.allclose(text.embed_tokens.weight[kept:], embeddings.mean(0).expand(3, -1))
    assert model.config.candidate_token_ids == [kept + 1, kept + 2]
    assert processor.config.image_seq_length == 16
    assert processor.prefix_ids.count(model.config.image_token_id) == 16
