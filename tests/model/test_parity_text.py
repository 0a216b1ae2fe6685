"""Prompts and token layout of the authors' MediSee, token for token; and the tokenizer behind them.

The authors' tokenizer is not at hand: the pieces that their prompts fall into stand in for it. With
the environment variable MEDISEE_LLAMA_TOKENIZER (a folder with Mistral's `tokenizer.model`) the ids
are compared too.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.models import Unigram

from medisee.errors import ModelError
from medisee.model.convert.text import (
    IMAGE_TOKEN,
    MISTRAL,
    VICUNA,
    from_sentencepiece,
    read_tokenizer,
)
from medisee.processing import MediSeeProcessor, ProcessorConfig

SPECIAL = ["<unk>", "<s>", "</s>"]
ADDED = ["[SEG]", "[BBOX]"]
PLAIN_VICUNA = replace(
    VICUNA, prefix=VICUNA.prefix.replace("<im_start>", "").replace("<im_end>", "")
)
"""MediSee's `llava_v1` has no tokens around the image."""

TEMPLATES = {"mistral_instruct": MISTRAL, "llava_v1": PLAIN_VICUNA}
OPENING = "It is [SEG] and [BBOX]."


def processor(tokenizer, template):
    config = ProcessorConfig(
        template, ("[BBOX]", "[SEG]"), IMAGE_TOKEN, 576, 1024, "imagenet", True, 336
    )
    return MediSeeProcessor(config, tokenizer)


def of_pieces(pieces):
    """A tokenizer that cuts text into as few of these pieces as it can."""
    table = [(piece, -1.0) for piece in [*SPECIAL, *sorted(set(pieces) - {*SPECIAL, *ADDED})]]
    tokenizer = Tokenizer(Unigram(table, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.add_special_tokens([AddedToken(n, special=True) for n in [*SPECIAL, *ADDED]])
    return tokenizer


@pytest.fixture(scope="module")
def examples(shared):
    text = (shared / "golden/prompting.json").read_text(encoding="utf-8")
    return json.loads(text)["examples"]


@pytest.fixture(scope="module")
def pieces(examples):
    # What our own openings and refusals begin with must be told apart as well.
    ours = ["\u2581Nothing", "\u2581This", "\u2581That", "\u2581Please", "\u2581Also", "\u2581a"]
    found = {piece for each in examples for piece in each["legacy_True"]["tokens"]}
    return [*ours, *(found - {"<image>"})]


def ids_of(ours, example):
    """Prefix, question and answer of an example, as our processor writes them."""
    question = example["question"].removeprefix("<image>\n")
    answer = example["answer"]
    if answer.startswith(OPENING):
        explained = ours.answer_ids(answer[len(OPENING) :].strip(), 1)
        return ours.prefix_ids + ours.question_ids(question) + explained
    # An answer that we never open with: in one piece, as they write it.
    template = ours.config.template
    return ours.prefix_ids + ours.encode_template(
        f"{template.question} {answer}{template.end}", question
    )


def test_prompts_equal_the_authors_token_for_token(examples, pieces):
    assert len(examples) == 8
    for example in examples:
        ours = processor(of_pieces(pieces), TEMPLATES[example["conv_type"]])
        found = [ours.tokenizer.id_to_token(n) for n in ids_of(ours, example)]
        image = found.index(IMAGE_TOKEN)
        assert found[image : image + 576] == [IMAGE_TOKEN] * 576
        collapsed = [*found[:image], "<image>", *found[image + 576 :]]
        assert collapsed == example["legacy_True"]["tokens"], example["name"]


def test_candidates_stand_where_the_authors_have_them(examples, pieces):
    for example in examples:
        ours = processor(of_pieces(pieces), TEMPLATES[example["conv_type"]])
        ids, facts = ids_of(ours, example), example["legacy_True"]
        for name, key in (("[SEG]", "seg"), ("[BBOX]", "bbox")):
            before = ids.index(ours.tokenizer.token_to_id(name)) - 1
            assert before == facts[f"{key}_hidden_position_expanded"]
            assert ours.tokenizer.id_to_token(ids[before]) == "\u2581"


def test_ids_equal_the_authors_with_their_tokenizer(examples):
    folder = os.environ.get("MEDISEE_LLAMA_TOKENIZER")
    if not folder:
        pytest.skip("no tokenizer.model: set MEDISEE_LLAMA_TOKENIZER to a folder that has it")
    tokenizer = read_tokenizer([Path(folder)], ADDED)
    for example in examples:
        ours = processor(tokenizer, TEMPLATES[example["conv_type"]])
        ids = [n for n in ids_of(ours, example) if n != 0]
        expected = [n for n in example["legacy_True"]["input_ids"] if n != -200]
        assert ids == expected, example["name"]


# ---- without any golden data ---------------------------------------------------------------------


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number, value):
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
MERGED = ["\u2581a", "bc", "\u2581abc", "ab", "\u2581I", "\u2581N", "\u2581P", "\u2581A"]
MERGED += ["\u2581T", "\u2581Th", "\u2581Thi", "\u2581Tha"]
LETTERS = ["\u2581", *"abcINPAThi"]


def sentencepiece_file(path):
    """A model of a few pieces, as sentencepiece writes it; fields that we pass over among them."""
    pieces = [*WORDS, *MERGED, *dict.fromkeys(LETTERS)]
    body = b""
    for rank, piece in enumerate(pieces):
        kind = 1 if rank >= len(WORDS) else 6
        entry = field(1, piece.encode()) + field(2, -float(rank)) + field(3, kind)
        body += field(1, entry)
    path.write_bytes(body + field(2, field(3, 40)))
    return path


def tokens(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).tokens


def test_a_sentencepiece_file_is_read(tmp_path):
    tokenizer = from_sentencepiece(sentencepiece_file(tmp_path / "tokenizer.model"))
    # By rank: first the space with a, then bc, then both together; ab never gets its turn.
    assert tokens(tokenizer, "abc") == ["\u2581abc"]
    assert tokens(tokenizer, "ab abc") == ["\u2581a", "b", "\u2581abc"]
    assert tokens(tokenizer, "a\n") == ["\u2581a", "<0x0A>"]
    assert tokenizer.decode(tokenizer.encode("ab \u00e9 abc").ids) == "ab \u00e9 abc"


def test_each_piece_of_text_gets_its_space_and_typed_tokens_stay_text(tmp_path):
    sentencepiece_file(tmp_path / "tokenizer.model")
    ours = processor(read_tokenizer([tmp_path], ADDED), MISTRAL)
    names = [ours.tokenizer.id_to_token(n) for n in ours.group]
    assert names[names.index("[SEG]") - 1] == names[names.index("[BBOX]") - 1] == "\u2581"
    assert ours.more[0] == ours.encode_text("Also")[0]
    typed = ours.question_ids("[SEG] </s> <unk> abc")
    assert not {ours.tokenizer.token_to_id(n) for n in [*SPECIAL, *ADDED]} & set(typed)
    answer = ours.answer_ids("abc", 1)
    assert answer[: len(ours.group)] == ours.group
    assert answer[-1] == ours.end_id == 2


def test_the_question_continues_the_template_without_a_space_between(tmp_path):
    sentencepiece_file(tmp_path / "tokenizer.model")
    ours = processor(read_tokenizer([tmp_path], ADDED), MISTRAL)
    names = [ours.tokenizer.id_to_token(n) for n in ours.question_ids("abc")]
    assert names[:5] == ["\u2581", "<0x0A>", "a", "bc", "\u2581"]


def test_added_tokens_beside_keep_their_ids(tmp_path):
    sentencepiece_file(tmp_path / "tokenizer.model")
    count = from_sentencepiece(tmp_path / "tokenizer.model").get_vocab_size()
    beside = {"<im_start>": count + 1, "[SEG]": count, "<im_end>": count + 2}
    (tmp_path / "added_tokens.json").write_text(json.dumps(beside), encoding="utf-8")
    tokenizer = read_tokenizer([tmp_path], ["[SEG]", "<im_start>", "<im_end>"])
    assert {name: tokenizer.token_to_id(name) for name in beside} == beside


@pytest.mark.parametrize("cut", [3, 50])
def test_a_truncated_tokenizer_is_named(tmp_path, cut):
    path = sentencepiece_file(tmp_path / "tokenizer.model")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ModelError, match=r"tokenizer.model is damaged"):
        from_sentencepiece(path)


def test_another_kind_of_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(field(1, field(1, b"<unk>") + field(2, 0.0)))
    with pytest.raises(ModelError, match="no Llama tokenizer"):
        from_sentencepiece(path)


def test_without_any_tokenizer_there_is_none(tmp_path):
    assert read_tokenizer([tmp_path], ADDED) is None
