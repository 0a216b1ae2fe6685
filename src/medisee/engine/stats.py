"""What is in a built set, counted from its files, and what is not in it and why."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medisee.engine.intake import SPLITS
from medisee.errors import DataError

__all__ = ["Stats", "read_stats"]


@dataclass
class Stats:
    """Counts of a built set.

    `records` is split -> number; `kinds`, `perspectives`, `lengths`, `passes` and `categories`
    count records (the latter three implicit ones only); `images`, `pairs`, `licences`, `rules`,
    `leaks` and `settings` are those of the build; `left_out` is reason -> files and pairs;
    `checksum` is the SHA-256 of the three files, one after the other.
    """

    records: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    perspectives: Counter[str] = field(default_factory=Counter)
    lengths: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    writers: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    reasons: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    checksum: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "records": self.records,
            "kinds": {split: dict(counts) for split, counts in self.kinds.items()},
            "perspectives": dict(self.perspectives),
            "lengths": dict(self.lengths),
            "passes": dict(self.passes),
            "categories": dict(self.categories.most_common()),
            "writers": dict(self.writers),
            "left_out": self.left_out,
            "reasons": {rule: dict(counts) for rule, counts in self.reasons.items()},
            "build": dict(self.build),
            "checksum": self.checksum,
        }


def read_stats(folder: str | Path) -> Stats:
    """The counts of the set in `folder`; DataError when no finished build is there."""
    folder = Path(folder)
    summary = folder / "work" / "summary.json"
    if not summary.is_file():
        raise DataError(f"{folder}: holds no finished build; make one with medisee data build")
    stats = Stats(build=json.loads(summary.read_text(encoding="utf-8")))
    digest = hashlib.sha256()
    for split in SPLITS:
        stats.records[split], stats.kinds[split] = 0, Counter()
        for line in _lines(folder / f"{split}.jsonl"):
            digest.update(line)
            _count(stats, split, json.loads(line))
    stats.checksum = digest.hexdigest()
    _count_left_out(stats, folder / "work" / "left_out.jsonl")
    _count_reasons(stats, folder / "work" / "dropped.jsonl")
    return stats


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as lines:
            yield from lines


def _count(stats: Stats, split: str, record: Mapping[str, Any]) -> None:
    stats.records[split] += 1
    stats.kinds[split][record["kind"]] += 1
    stats.writers[f"{record['writer']} ({record['prompt_version']})"] += 1
    stats.categories.update(target["label"] for target in record["targets"])
    if record["kind"] == "implicit":
        stats.perspectives[record["perspective"]] += 1
        stats.lengths[record["length"]] += 1
        stats.passes[str(record["pass"])] += 1


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
