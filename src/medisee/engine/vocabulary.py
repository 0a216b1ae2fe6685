"""Whether a text hides a name: spelt right, inflected, split, run together or misspelt."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from medisee.engine import rules
from medisee.entities import Entity, load_entities

__all__ = ["hidden_name"]

_SMALL = frozenset(("a", "an", "and", "in", "left", "of", "right", "the", "to", "with"))
_MISSPELT_FROM = 5  # letters: shorter words have too many neighbours
_JOINED_FROM = 6


def hidden_name(text: str, entity: Entity) -> str | None:
    """What in `text` gives the entity away by name or synonym; None when nothing does."""
    if entity.is_named_in(text):
        return "named"
    words = re.findall("[a-z0-9]+", text.lower())
    joined = {"".join(words[i : i + n]) for n in (1, 2, 3) for i in range(len(words) - n + 1)}
    if not joined.isdisjoint(_run_together(entity)):
        return "split or run together"
    odd = [word for word in words if len(word) >= _MISSPELT_FROM and word not in _vocabulary()]
    if odd and any(_is_misspelt(term, words, odd) for term in _terms(entity)):
        return "misspelt"
    return None


def _is_misspelt(term: Sequence[str], words: Sequence[str], odd: Sequence[str]) -> bool:
    """Whether each word of the term occurs, at least one of them misspelt."""
    slips = [_slip(word, odd) for word in term]
    return any(slips) and all(slip or word in words for word, slip in zip(term, slips, strict=True))


def _slip(word: str, odd: Sequence[str]) -> bool:
    if len(word) < _MISSPELT_FROM:
        return False
    return any(not _typos(word).isdisjoint(_deletions(other)) for other in odd if other != word)


@lru_cache(maxsize=4096)
def _typos(word: str) -> frozenset[str]:
    return frozenset(_deletions(word))


def _deletions(word: str) -> Iterator[str]:
    """The word, and the word without each of its letters.

    Two words that share one are at most one swap, or one letter left out, doubled or replaced,
    apart; that is what people mistype.
    """
    yield word
    for i in range(len(word)):
        yield word[:i] + word[i + 1 :]


@lru_cache(maxsize=4096)
def _run_together(entity: Entity) -> frozenset[str]:
    """The terms without blanks, with their small words and without."""
    whole = {re.sub("[^a-z0-9]", "", term.lower()) for term in entity.terms}
    whole |= {"".join(term) for term in _terms(entity)}
    return frozenset(term for term in whole if len(term) >= _JOINED_FROM)


@lru_cache(maxsize=4096)
def _terms(entity: Entity) -> tuple[tuple[str, ...], ...]:
    split = (re.findall("[a-z0-9]+", term.lower()) for term in entity.terms)
    kept = (tuple(word for word in words if word not in _SMALL) for words in split)
    return tuple(dict.fromkeys(term for term in kept if term))


@lru_cache(maxsize=1)
def _vocabulary() -> frozenset[str]:
    """Every word that the curated texts use: none of them is a slip of the finger."""
    texts: list[str] = []
    for entity in load_entities().values():
        texts += (*entity.terms, *entity.descriptions, *entity.questions, *entity.explanation)
    texts += _strings(rules.read_yaml("medisee.engine", "wordings.yaml"))
    return frozenset(re.findall("[a-z0-9]+", " ".join(texts).lower()))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
