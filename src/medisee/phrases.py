"""What a model says: sentences that were checked by hand, and how the next word is found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["Phrasebook", "speak"]

Trie = dict[int, Any]


class Phrasebook:
    """The sentences that a small model may say of each category, and as a refusal.

    A model of nano's size knows *what* it sees better than how to write about it: left alone, it
    garbles medical statements. `phrases.json` in a model's folder holds what was checked by hand;
    the model chooses among it, token by token.
    """

    def __init__(self, answers: Mapping[str, Sequence[str]], refusals: Sequence[str]) -> None:
        self.answers = {label: tuple(sentences) for label, sentences in answers.items()}
        self.refusals = tuple(refusals)
        self._tries: dict[str, Trie] = {}

    def index(self, encode: Callable[[str], list[int]]) -> None:
        """Encodes the sentences; an explanation follows the groups after a space."""
        self._tries = {
            label: _trie(encode(f" {sentence}") for sentence in sentences)
            for label, sentences in self.answers.items()
        }
        self._tries[""] = _trie(encode(sentence) for sentence in self.refusals)

    def allowed(self, labels: Sequence[str], said: Sequence[int]) -> list[int]:
        """Ids that may follow `said`; none when all is said.

        Args:
            labels: category of each target, which gets one sentence each; none for a refusal.
        """
        plan = [self._tries[label] for label in labels or [""]]
        node: Trie = plan[0]
        complete = 0
        for token in said:
            node = node[token]
            if not node:
                complete += 1
                node = plan[complete] if complete < len(plan) else {}
        return list(node)


def _trie(sentences: Iterable[list[int]]) -> Trie:
    root: Trie = {}
    for ids in sentences:
        node = root
        for token in ids:
            node = node.setdefault(token, {})
    return root


def speak(
    best: Callable[[list[int], list[int] | None], int],
    opening: int | None,
    stop: int,
    most: int,
    allowed: Callable[[list[int]], list[int]] | None = None,
) -> Iterator[int]:
    """Token ids of an explanation, greedily; `stop` ends it and is not yielded.

    A token that is settled needs no model: of sentences that are given, only the few places where
    they part are decided, and all that was said since the last one is read in one pass.

    Args:
        best: reads the tokens said since its last call and gives the most probable next one,
            among the ids of its second argument where there are any.
        opening: a first token that is settled already (of a refusal); it is yielded too.
        most: tokens at most.
        allowed: ids that may follow those already said; none ends the explanation.
    """
    said: list[int] = []
    unread: list[int] = []
    while len(said) < most:
        choices = None if allowed is None else allowed(said)
        if opening is not None and not said:
            token = opening
        elif choices is not None and len(choices) < 2:
            token = choices[0] if choices else stop
        else:
            token, unread = best(unread, choices), []
        if token == stop:
            return
        yield token
        said.append(token)
        unread.append(token)
