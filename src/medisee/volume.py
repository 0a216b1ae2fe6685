"""Whole volumes: slice after slice through a model, linked into one mask for each target.

A slice is asked exactly as it would be alone. What the model says of neighbouring slices is then
linked: findings of the same name that overlap form a chain, which may jump over one slice. A
chain's weight is the sum of its scores; chains of less than half the weight of the heaviest are
dropped as chance hits, and chains of one name are one finding. No mask is changed or invented.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medisee.errors import InputError
from medisee.io import MedicalVolume
from medisee.io.volume import VolumeAnswer, VolumeFinding
from medisee.questions import check_question
from medisee.structures import Answer, RefusalReason, decode_rle, encode_rle

__all__ = ["Journal", "SliceAnswer", "SliceFinding", "ask_volume", "fingerprint", "link"]

MAX_GAP = 1
"""How many slices a chain may jump over."""

KEEP = 0.5
"""Chains lighter than this share of the heaviest are dropped."""

Progress = Callable[[int, int], None]
"""Told (slices done, slices in all)."""


@dataclass(frozen=True, eq=False)
class SliceFinding:
    """A target on one slice: its name where the model knows it, score, mask (H, W)."""

    label: str | None
    score: float
    mask: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SliceAnswer:
    """What a model said of one slice, without words."""

    findings: list[SliceFinding]
    refusal: RefusalReason | None

    @classmethod
    def of(cls, answer: Answer) -> SliceAnswer:
        """The part of an answer that linking needs."""
        findings = [SliceFinding(f.label, f.score, f.mask) for f in answer.findings]
        return cls(findings, answer.refusal)

    def to_dict(self) -> dict[str, Any]:
        """JSON types, masks as COCO RLE."""
        found = [
            {"label": f.label, "score": f.score, "mask": encode_rle(f.mask)} for f in self.findings
        ]
        return {"refusal": self.refusal and self.refusal.value, "findings": found}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> SliceAnswer:
        """What `to_dict` gave."""
        findings = [
            SliceFinding(f["label"], f["score"], decode_rle(f["mask"])) for f in value["findings"]
        ]
        return cls(findings, value["refusal"] and RefusalReason(value["refusal"]))


class Journal:
    """The slices done so far, one JSON line each, so that work can be stopped and go on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[int, list[SliceAnswer]]:
        """Answers to all questions, by slice. A line cut short by a kill is passed over."""
        done: dict[int, list[SliceAnswer]] = {}
        with suppress(FileNotFoundError), self.path.open(encoding="utf-8") as lines:
            for line in lines:
                with suppress(ValueError, KeyError, TypeError):
                    value = json.loads(line)
                    done[int(value["slice"])] = [SliceAnswer.from_dict(a) for a in value["answers"]]
        return done

    def add(self, index: int, answers: Sequence[SliceAnswer]) -> None:
        """Append one slice."""
        line = json.dumps({"slice": index, "answers": [a.to_dict() for a in answers]})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}")  # the break first: it ends a line that was cut short
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """The work is finished and written elsewhere."""
        self.path.unlink(missing_ok=True)


def ask_volume(
    model: Any,
    volume: MedicalVolume,
    questions: Sequence[str],
    *,
    explain: bool = True,
    journal: Journal | None = None,
    progress: Progress = lambda done, total: None,
) -> list[VolumeAnswer]:
    """Ask all slices all questions; one answer for each question.

    model: as `medisee.load` gives it. journal: slices in it are not asked again; it must be one
    for this volume, model and questions (see `fingerprint`).

    Raises InputError for an empty or too long question, or a slice that cannot be read.
    """
    checked = [check_question(question) for question in questions]
    started = time.perf_counter()
    slices = _ask_slices(model, volume, checked, journal, progress)
    seconds = {"slices": time.perf_counter() - started}
    sessions = _Sessions(model, volume)
    return [
        _combine(number, question, slices, sessions, explain, dict(seconds))
        for number, question in enumerate(checked)
    ]


def fingerprint(model: Any, volume: MedicalVolume, questions: Sequence[str]) -> str:
    """16 hexadecimal digits that tell this work from any other; no patient detail is in them."""
    middle = volume[len(volume) // 2]
    place = volume.reference
    parts = [model.name, model.checksum, *questions, volume.source, *place.uids]
    digest = hashlib.sha256(json.dumps([parts, place.shape, place.axis]).encode())
    digest.update(middle.display.tobytes())
    return digest.hexdigest()[:16]


def _ask_slices(
    model: Any,
    volume: MedicalVolume,
    questions: list[str],
    journal: Journal | None,
    progress: Progress,
) -> list[list[SliceAnswer]]:
    """Answers by slice, then question."""
    done = {} if journal is None else journal.read()
    answers = []
    for index in range(len(volume)):
        progress(index, len(volume))
        if len(done.get(index, ())) != len(questions):
            asked = model.open(volume[index]).ask(questions, explain=False)
            done[index] = [SliceAnswer.of(answer) for answer in asked]
            if journal is not None:
                journal.add(index, done[index])
        answers.append(done[index])
    progress(len(volume), len(volume))
    return answers


class _Sessions:
    """The last session opened again: several questions are often shown on the same slice."""

    def __init__(self, model: Any, volume: MedicalVolume) -> None:
        self.model, self.volume = model, volume
        self._last: tuple[int, Any] | None = None

    def at(self, index: int) -> Any:
        """A session about a slice."""
        if self._last is None or self._last[0] != index:
            self._last = index, self.model.open(self.volume[index])
        return self._last[1]


def _combine(
    number: int,
    question: str,
    slices: Sequence[Sequence[SliceAnswer]],
    sessions: _Sessions,
    explain: bool,
    seconds: dict[str, float],
) -> VolumeAnswer:
    own = [answers[number] for answers in slices]
    findings = link([answer.findings for answer in own])
    refusal, index = _refusal(own)
    if findings:
        refusal, index = None, _best_slice(findings)
    started = time.perf_counter()
    [shown] = sessions.at(index).ask([question], explain=explain)
    seconds["explain"] = time.perf_counter() - started
    return VolumeAnswer(
        findings=[_named(finding, index, shown) for finding in findings],
        refusal=refusal,
        warnings=list(shown.warnings),
        volume=sessions.volume,
        shown=shown,
        seconds=seconds,
    )


def _refusal(answers: Sequence[SliceAnswer]) -> tuple[RefusalReason | None, int]:
    """The reason that most slices gave, and the middle one of those slices."""
    reasons = Counter(answer.refusal for answer in answers)
    reason = reasons.most_common(1)[0][0]
    slices = [index for index, answer in enumerate(answers) if answer.refusal == reason]
    return reason, slices[len(slices) // 2]


def _best_slice(findings: Sequence[VolumeFinding]) -> int:
    """Where the findings are large and sure."""

    def weight(index: int) -> float:
        return sum(
            finding.scores[index] * float(finding.masks[index].sum())
            for finding in findings
            if index in finding.masks
        )

    return max({index for finding in findings for index in finding.masks}, key=weight)


def _named(finding: VolumeFinding, index: int, shown: Answer) -> VolumeFinding:
    """A finding without a name takes that of the shown finding which it overlaps."""
    if finding.label is not None or index not in finding.masks:
        return finding
    mask = finding.masks[index]
    overlaps = [(int((mask & other.mask).sum()), other.label) for other in shown.findings]
    best = max(overlaps, key=lambda pair: pair[0], default=(0, None))
    return replace(finding, label=best[1] if best[0] else None)


@dataclass(eq=False)
class _Chain:
    """Findings of one name on neighbouring slices that overlap from each to the next."""

    label: str | None
    masks: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)

    @property
    def weight(self) -> float:
        return sum(self.scores.values())

    def overlap(self, index: int, finding: SliceFinding) -> int:
        """Pixels shared with the chain's last slice before this one; 0 when it is too far off."""
        earlier = [i for i in self.masks if i < index]
        if self.label != finding.label or not earlier or index - max(earlier) > MAX_GAP + 1:
            return 0
        return int((self.masks[max(earlier)] & finding.mask).sum())

    def add(self, index: int, mask: NDArray[np.bool_], score: float) -> None:
        if index in self.masks:
            mask, score = mask | self.masks[index], max(score, self.scores[index])
        self.masks[index], self.scores[index] = mask, score


def link(slices: Sequence[Sequence[SliceFinding]]) -> list[VolumeFinding]:
    """Findings of a volume from those of its slices, the heaviest first."""
    chains: list[_Chain] = []
    for index, findings in enumerate(slices):
        for finding in findings:
            if not finding.mask.any():
                continue
            near = max(chains, key=lambda c: c.overlap(index, finding), default=None)
            if near is None or near.overlap(index, finding) == 0:
                near = _Chain(finding.label)
                chains.append(near)
            near.add(index, finding.mask, finding.score)
    heaviest = max((chain.weight for chain in chains), default=0.0)
    targets: dict[str | None, _Chain] = {}
    for chain in sorted(chains, key=lambda chain: -chain.weight):
        if chain.weight >= KEEP * heaviest:
            target = targets.setdefault(chain.label, _Chain(chain.label))
            for index, mask in chain.masks.items():
                target.add(index, mask, chain.scores[index])
    return [VolumeFinding(t.label, t.masks, t.scores) for t in targets.values()]
