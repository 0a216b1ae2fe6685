"""What is in a built set, counted from its files, and what is not in it and why."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medisee.engine.intake import SPLITS
from medisee.errors import DataError

__all__ = ["Stats", "read_stats"]


@dataclass
class Stats:
    """Counts of a built set.

    `records` and `images` are split -> number; `kinds`, `categories` (with `category_images`),
    `licences` (images of each) and `writers` count all records, `perspectives`, `lengths`,
    `passes`, `balance` ("attribute, short" ...) and the numbers of words implicit ones only;
    `left_out` is reason -> files and pairs; `reasons` are the most frequent ones of each rule;
    `build` is what the build says of itself (`pairs`, `rules`, `leaks`, `settings`);
    `checksum` is the SHA-256 of the three files, one after the other.
    """

    records: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    perspectives: Counter[str] = field(default_factory=Counter)
    lengths: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    balance: Counter[str] = field(default_factory=Counter)
    question_words: Counter[int] = field(default_factory=Counter)
    answer_words: Counter[int] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    category_images: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    writers: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    reasons: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    checksum: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "records": self.records,
            "images": self.images,
            "kinds": {split: dict(counts) for split, counts in self.kinds.items()},
            "perspectives": dict(self.perspectives),
            "lengths": dict(self.lengths),
            "passes": dict(self.passes),
            "balance": dict(self.balance),
            "question_words": dict(sorted(self.question_words.items())),
            "answer_words": dict(sorted(self.answer_words.items())),
            "categories": dict(self.categories.most_common()),
            "category_images": dict(self.category_images.most_common()),
            "licences": dict(self.licences),
            "writers": dict(self.writers),
            "left_out": self.left_out,
            "reasons": {rule: dict(counts) for rule, counts in self.reasons.items()},
            "build": dict(self.build),
            "checksum": self.checksum,
        }


def read_stats(
    folder: str | Path, keep: Callable[[Mapping[str, Any]], bool] = lambda record: True
) -> Stats:
    """The counts of the set in `folder`; DataError when no finished build is there.

    keep: which records count; the checksum, what was left out and the reasons are of all.
    """
    folder = Path(folder)
    summary = folder / "work" / "summary.json"
    if not summary.is_file():
        raise DataError(f"{folder}: holds no finished build; make one with medisee data build")
    stats = Stats(build=json.loads(summary.read_text(encoding="utf-8")))
    digest = hashlib.sha256()
    for split in SPLITS:
        counter = _SplitCounter(stats, split)
        for line in _lines(folder / f"{split}.jsonl"):
            digest.update(line)
            if keep(record := json.loads(line)):
                counter.add(record)
    stats.checksum = digest.hexdigest()
    _count_left_out(stats, folder / "work" / "left_out.jsonl")
    _count_reasons(stats, folder / "work" / "dropped.jsonl")
    return stats


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as lines:
            yield from lines


class _SplitCounter:
    """Counts the records of one split; those of an image stand together."""

    def __init__(self, stats: Stats, split: str) -> None:
        self._stats, self._split = stats, split
        self._image, self._labels = "", set[str]()
        stats.records[split], stats.images[split], stats.kinds[split] = 0, 0, Counter()

    def add(self, record: Mapping[str, Any]) -> None:
        stats = self._stats
        if record["image"] != self._image:
            self._image, self._labels = record["image"], set()
            stats.images[self._split] += 1
            stats.licences[record["licence"] or "not stated"] += 1
        stats.records[self._split] += 1
        stats.kinds[self._split][record["kind"]] += 1
        stats.writers[f"{record['writer']} ({record['prompt_version']})"] += 1
        labels = {target["label"] for target in record["targets"]}
        stats.categories.update(labels)
        stats.category_images.update(labels - self._labels)
        self._labels |= labels
        if record["kind"] == "implicit":
            self._add_implicit(record)

    def _add_implicit(self, record: Mapping[str, Any]) -> None:
        stats = self._stats
        stats.perspectives[record["perspective"]] += 1
        stats.lengths[record["length"]] += 1
        stats.passes[str(record["pass"])] += 1
        stats.balance[f"{record['perspective']}, {record['length']}"] += 1
        stats.question_words[len(record["question"].split())] += 1
        stats.answer_words[len(record["answer"].split())] += 1


def _count_left_out(stats: Stats, path: Path) -> None:
    for line in _lines(path):
        entry = json.loads(line)
        counts = stats.left_out.setdefault(entry["reason"], {"files": 0, "pairs": 0})
        counts["files"] += 1
        counts["pairs"] += entry["pairs"]


def _count_reasons(stats: Stats, path: Path, most: int = 5) -> None:
    found: dict[str, Counter[str]] = {}
    for line in _lines(path):
        entry = json.loads(line)
        found.setdefault(entry["rule"], Counter())[entry["reason"]] += 1
    stats.reasons = {rule: counts.most_common(most) for rule, counts in sorted(found.items())}
