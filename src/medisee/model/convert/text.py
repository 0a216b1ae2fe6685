"""The text side of converted models: their tokenizers and conversation templates.

These models were trained with the slow Llama tokenizer in its legacy form: the text is cut at
special tokens and each piece encoded alone, with a space put before it. `MediSeeProcessor`
cuts at special tokens anyway, so a BPE whose normaliser puts that space gives the same ids.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from ...errors import ModelError
from ...processing import PromptTemplate

IMAGE_TOKEN = "<unk>"
"""Stands for image tokens: a row that the vocabulary has and that no text ever uses."""

SPECIAL = (IMAGE_TOKEN, "<s>", "</s>")
_SPACE = "\u2581"

MISTRAL = PromptTemplate(
    prefix=f"<s>[INST] {IMAGE_TOKEN}",
    question="\n{} [/INST]",
    end=" </s>",
    next_round="[INST] ",
)
"""LLaVA-Med's `mistral_instruct`."""

VICUNA = PromptTemplate(
    prefix="<s>A chat between a curious human and an artificial intelligence assistant. The "
    "assistant gives helpful, detailed, and polite answers to the human's questions. USER: "
    f"<im_start>{IMAGE_TOKEN}<im_end>",
    question="\n{} ASSISTANT:",
    end="</s>",
    next_round="USER: ",
)
"""LLaVA's `llava_v1`, with the image between two tokens of its own, as LISA and READ have it."""


def read_tokenizer(folders: Iterable[Path], added: Sequence[str]) -> Tokenizer | None:
    """The first tokenizer of the folders, with tokens added; None where there is none.

    Raises:
        ModelError: a tokenizer file that is damaged.
    """
    for folder in folders:
        for name, read in (("tokenizer.model", from_sentencepiece), ("tokenizer.json", _from_json)):
            if (folder / name).is_file():
                tokenizer = read(folder / name)
                names = [*SPECIAL, *_added_beside(folder), *added]
                tokenizer.add_special_tokens(
                    [AddedToken(n, special=True, normalized=False) for n in dict.fromkeys(names)]
                )
                return tokenizer
    return None


def _from_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(f"{path} is no tokenizer that can be read") from error


def _added_beside(folder: Path) -> list[str]:
    """Tokens that `added_tokens.json` names, in the order of their ids."""
    path = folder / "added_tokens.json"
    if not path.is_file():
        return []
    try:
        ids: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        return sorted(ids, key=lambda name: ids[name])
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} is no table of added tokens") from error


def from_sentencepiece(path: Path) -> Tokenizer:
    """A `tokenizer.model` (sentencepiece, BPE with byte fallback) as a tokenizer.

    Raises:
        ModelError: a damaged file, or one without bytes for what it has no piece of.
    """
    try:
        pieces = list(_pieces(path.read_bytes()))
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is damaged; copy or download it again") from error
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    if set(SPECIAL) - ids.keys() or "<0x0A>" not in ids:
        raise ModelError(f"{path} is no Llama tokenizer: it lacks {', '.join(SPECIAL)} or bytes")
    model = BPE(
        ids, _merges(dict(pieces), ids), unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def _merges(scores: Mapping[str, float], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs that form a piece, best score first: sentencepiece merges by the piece's score."""
    found = [
        (-score, ids[piece[:cut]], ids[piece[cut:]], piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return [(left, right) for *_, left, right in sorted(found)]


# ---- sentencepiece's protocol buffer: field 1 of the model is a piece; of a piece, field 1 is its
# text and field 2 its score. The rest is passed over.


def _pieces(data: bytes) -> Iterator[tuple[str, float]]:
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            parts = dict(_fields(value))
            text, score = parts.get(1, b""), parts.get(2, b"\0\0\0\0")
            yield bytes(text).decode("utf-8"), struct.unpack("<f", bytes(score))[0]


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and raw value of each field; numbers of variable length come as eight bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            number, place = _varint(data, place)
            yield key >> 3, struct.pack("<Q", number)
            continue
        if kind == 2:
            length, place = _varint(data, place)
        else:
            length = {1: 8, 5: 4}.get(kind, len(data) + 1)
        if place + length > len(data):
            raise IndexError("a field reaches beyond the end")
        yield key >> 3, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value & (2**64 - 1), place
