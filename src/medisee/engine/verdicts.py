"""What people decided about records: kept line by line, for ever, and how far they agree.

A verdict is one JSON line that is on the disk before `VerdictStore.add` returns. A later verdict
of the same person about the same record replaces the earlier one, which stays in the file.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medisee.errors import DataError
from medisee.structures import QARecord

__all__ = [
    "Agreement",
    "Decision",
    "Verdict",
    "VerdictStore",
    "agreements",
    "cohen_kappa",
    "digest_of",
    "screened",
]

Decision = Literal["keep", "edit", "drop", "skip"]
"""`skip` is no judgement: it leaves the record to others."""


class Verdict(BaseModel):
    """One person's decision about one record.

    `digest` is that of the words that were shown: a verdict does not hold for a record of the
    same id that was built anew with other words. An edit carries the words as they shall be.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    record: str = Field(min_length=1)
    digest: str
    screener: str = Field(min_length=1, max_length=40)
    decision: Decision
    question: str | None = None
    answer: str | None = None
    note: str = Field(default="", max_length=2000)
    at: datetime = Field(default_factory=lambda: datetime.now(timezone.utc))

    @model_validator(mode="after")
    def _words_belong_to_edits(self) -> Verdict:
        given = bool(self.question and self.question.strip()) and self.answer is not None
        if (self.decision == "edit") != given:
            raise ValueError("an edit, and only an edit, carries a question and an answer")
        return self


def digest_of(record: QARecord) -> str:
    """A short hash of a record's words."""
    words = "\n".join(
        (record.question, record.answer, *(turn.model_dump_json() for turn in record.history))
    )
    return hashlib.sha256(words.encode()).hexdigest()[:16]


class VerdictStore:
    """The verdicts of one file; safe for threads of one process.

    Raises DataError when the file cannot be read. A line that a kill cut off is removed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._latest: dict[str, dict[str, Verdict]] = {}
        for verdict in _read(self.path):
            self._note(verdict)

    def add(self, verdict: Verdict) -> None:
        """Appends a verdict; when this returns it survives a kill and a power cut."""
        line = verdict.model_dump_json(exclude_none=True) + "\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as out:
                out.write(line.encode())
                out.flush()
                os.fsync(out.fileno())
            self._note(verdict)

    def about(self, record: str) -> Mapping[str, Verdict]:
        """The latest verdict of each screener about a record."""
        return self._latest.get(record, {})

    def records(self) -> Iterator[tuple[str, Mapping[str, Verdict]]]:
        """All records that somebody saw, each with the latest verdict of each screener."""
        yield from list(self._latest.items())

    @property
    def screeners(self) -> list[str]:
        """Everybody who gave a verdict, by name."""
        return sorted({name for _, verdicts in self.records() for name in list(verdicts)})

    def counts(self, screener: str) -> Counter[str]:
        """How often somebody decided what, by their latest verdicts."""
        return Counter(
            verdicts[screener].decision for _, verdicts in self.records() if screener in verdicts
        )

    def _note(self, verdict: Verdict) -> None:
        self._latest.setdefault(verdict.record, {})[verdict.screener] = verdict


def _read(path: Path) -> Iterator[Verdict]:
    """The verdicts of a file, which may not exist; the cut-off end of a killed write is dropped."""
    if not path.exists():
        return
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    except OSError as error:
        raise DataError(f"{path}: cannot be used for verdicts: {error.strerror}") from error
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            yield Verdict.model_validate_json(line)
        except ValidationError as error:
            raise DataError(f"{path}, line {number}: is no verdict; mend or remove it") from error


@dataclass(frozen=True)
class Agreement:
    """How far two screeners agree on the records that both judged (keep, edit or drop).

    kappa is None where it is not defined: no common record, or both always said the same one
    thing, so that chance alone would explain it.
    """

    screeners: tuple[str, str]
    common: int
    same: int
    kappa: float | None


def agreements(store: VerdictStore) -> list[Agreement]:
    """One entry for each two screeners, by name."""
    return [_agreement(store, first, second) for first, second in combinations(store.screeners, 2)]


def _agreement(store: VerdictStore, first: str, second: str) -> Agreement:
    pairs = [
        (verdicts[first].decision, verdicts[second].decision)
        for _, verdicts in store.records()
        if first in verdicts
        and second in verdicts
        and verdicts[first].digest == verdicts[second].digest
        and "skip" not in (verdicts[first].decision, verdicts[second].decision)
    ]
    same = sum(a == b for a, b in pairs)
    return Agreement((first, second), len(pairs), same, cohen_kappa(pairs))


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa of two people's judgements of the same things; None where not defined.

    (p_o - p_e) / (1 - p_e): observed agreement against that of two people who judge at random,
    each with their own frequencies (Cohen, 1960).
    """
    total = len(pairs)
    if not total:
        return None
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    by_chance = sum(first[word] * second[word] for word in first)
    if by_chance == total * total:
        return None
    observed = sum(a == b for a, b in pairs)
    return (observed * total - by_chance) / (total * total - by_chance)


def screened(records: Iterable[QARecord], store: VerdictStore) -> Iterator[QARecord]:
    """The records as the screeners left them; `verdict` says what became of each.

    One `drop` of anybody drops a record; else the latest edit counts; else it is kept. What
    nobody judged, or judged in other words, passes as it is.
    """
    for record in records:
        digest = digest_of(record)
        valid = [v for v in store.about(record.id).values() if v.digest == digest]
        decisions = {verdict.decision for verdict in valid}
        if "drop" in decisions:
            continue
        if "edit" in decisions:
            last = max((v for v in valid if v.decision == "edit"), key=lambda v: v.at)
            words = {"question": last.question, "answer": last.answer}
            yield record.model_copy(update={**words, "verdict": "edit"})
        elif "keep" in decisions:
            yield record.model_copy(update={"verdict": "keep"})
        else:
            yield record
