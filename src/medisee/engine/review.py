"""The reviewer: rules as code that every record passes, whoever wrote it.

One `Reviewer` sees the records of one image in the order in which they were written. It mends
what can be mended without touching the meaning, and gives None for a record that breaks a rule;
the reason is kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from medisee.engine import rules
from medisee.engine.claims import SHOWN, ClaimReader
from medisee.engine.scene import Scene
from medisee.engine.vocabulary import hidden_name
from medisee.structures import QARecord

__all__ = ["ANSWER_LIMITS", "LIMITS", "RULES", "Dropped", "Reviewer"]

LIMITS: Mapping[str, tuple[int, int]] = {"short": (5, 15), "long": (10, 20)}
"""Fewest and most words of an implicit question by its length (as in the paper)."""

ANSWER_LIMITS = (4, 40)
"""Of the answer to an implicit question: about 15 words that explain."""

_OTHER_LIMIT = (1, 45)
_ALIKE = 0.8  # Jaccard index of word trigrams from which two questions count as one
_MARKUP = re.compile(
    r"[<>{}\[\]|\\^`=]|\*\*|__|~~|#|https?:|www\.|&\w+;|\$\$|\b(?:BBOX|SEG|CAND\d)\b|\ufffd"
)
_PERSONAL = re.compile(
    r"[\w.+-]+@[\w-]+\.\w+|\b(?:mrn|ssn|dob|patient (?:id|no|number))\b"
    r"|\b(?:\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}-\d\d-\d\d)\b|\+?\d[\d ()/-]{7,}\d|\b\d{6,}\b"
    r"|\b(?:born|died) (?:on|in) (?:the )?\d"
    r"|\b(?:mr|mrs|ms)\.? (?!images?\b|scans?\b|pictures?\b)(?-i:[A-Z][a-z]+)",
    re.IGNORECASE,
)
_PROFANE = re.compile(
    r"\b(?:fuck\w*|shit\w*|bitch\w*|bastards?|cunts?|assholes?|damn(?:ed)?|goddamn|wank\w*|whores?)\b",
    re.IGNORECASE,
)
_COURTESY = re.compile(
    r"(?:[.?!,;]\s*|\s+)(?:thanks(?: a lot| in advance| so much)?|thank you(?: very much)?|please"
    r"|pls|i'd be grateful|many thanks|cheers)[.! ]*$",
    re.IGNORECASE,
)
_ASKS = re.compile(
    r"\b(?:wh(?:ere|ich|at|o|ose|y)|how|show|mark|outline|find|locate|highlight|segment|delineate"
    r"|identify|contour|trace|label|circle|detect|pick|point|draw|colou?r|put|give|tell|help|let"
    r"|pinpoint|see|want|wants|need|needs|look|looking|like to|please|pls|only|can|could|would"
    r"|should|do|does|is|are|any chance|explain|indicate|fill|trying to find|have to|i'd like"
    r"|wonder\w*|curious|same|next|now|also|go|then|just|one|start|shade|search|measure|box|mask"
    r"|follow|count|track|prove|stop|notice|cut|click|crop|select|wanted|asked|asks|asking|task|annotate|surround|spot|try|take)\b",
    re.IGNORECASE,
)
# "This film", "the OCT": words for the image in hand, and the kinds of image they fit.
_SHOWN = (
    r"\b(?:this|these|the|my|her|his)"
    r"(?: (?!(?:by|for|in|of|on|that|under|when|where|which|with)\b)[a-z-]+){0,2}? "
)
_KINDS = tuple(
    (re.compile(_SHOWN + rf"(?:{words})\b"), frozenset(kinds))
    for words, kinds in (
        ("cts?", ["CT"]),
        ("mris?|mr", ["MR"]),
        ("pet", ["PET"]),
        ("ultrasound|sonogram", ["ultrasound"]),
        ("x-rays?|radiograph|chest film|panoramic film", ["X-ray", "mammography"]),
        ("mammogram", ["mammography"]),
        ("endoscopy|colonoscopy|laryngoscopy|gastroscopy", ["endoscopy"]),
        ("fundus (?:photo(?:graph)?|image|picture)|retinal photograph", ["fundus"]),
        ("oct|flow map", ["OCT"]),
        ("dermatoscope|dermoscopy", ["dermoscopy"]),
        ("smear|micrograph|slide|blood film", ["microscopy"]),
    )
)
_OF_IMAGE = re.compile(rf"{SHOWN}|\bhere\b")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")


@dataclass(frozen=True)
class Dropped:
    """A record that broke `rule`; `reason` says how."""

    record: QARecord
    rule: str
    reason: str


@dataclass
class Reviewer:
    """Reviews the records of one image."""

    scene: Scene
    checked: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    dropped: list[Dropped] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _about: dict[str, list[frozenset[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.claims = ClaimReader(self.scene.image, self.scene.shapes, self.scene.entities)

    def accept(self, record: QARecord) -> QARecord | None:
        """The record, mended where need be; None, with its reason kept, where it is dropped."""
        record = self._mend(record)
        for name, rule in RULES.items():
            self.checked[name] += 1
            reason = rule(record, self)
            if reason is not None:
                self.dropped.append(Dropped(record, name, reason))
                return None
        self._seen.add(_key(record))
        self._about.setdefault(_topic(record), []).append(_trigrams(record.question))
        return record

    def _mend(self, record: QARecord) -> QARecord:
        self.checked["spacing"] += 1
        mended = {
            name: tidy
            for name in ("question", "answer")
            if (tidy := _tidy(getattr(record, name))) != getattr(record, name)
        }
        if not mended or not all(mended.values()):
            return record
        self.mended["spacing"] += 1
        return record.model_copy(update=mended)

    def is_repeated(self, record: QARecord) -> str | None:
        """Why the question is no new one about this image."""
        if _key(record) in self._seen:
            return "the same question was asked before"
        own = _trigrams(record.question)
        for other in self._about.get(_topic(record), ()):
            if len(own & other) > _ALIKE * len(own | other):
                return "almost the same question was asked about this target"
        return None


def _tidy(text: str) -> str:
    """Plain quotes, single blanks, no blank before a stop, no control characters."""
    text = unicodedata.normalize("NFC", text).translate(_PLAIN)
    text = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"\s+([.,;:?!])", r"\1", " ".join(text.split()))


_PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " "})


def _key(record: QARecord) -> str:
    rounds = (*(turn.question for turn in record.history), record.question)
    return "|".join(" ".join(_words(text)) for text in rounds)


def _topic(record: QARecord) -> str:
    return "|".join((record.kind, *(target.label for target in record.targets)))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@lru_cache(maxsize=64)
def _trigrams(text: str) -> frozenset[str]:
    words = _words(text)
    return frozenset(" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def _texts(record: QARecord) -> Iterable[str]:
    yield record.question
    yield record.answer
    for turn in record.history:
        yield turn.question
        yield turn.answer


def _markup(record: QARecord, reviewer: Reviewer) -> str | None:
    found = next((m for text in _texts(record) if (m := _MARKUP.search(text))), None)
    return found and f"holds {found[0]!r}"


def _personal(record: QARecord, reviewer: Reviewer) -> str | None:
    # What was found is not repeated: it may be what must not be passed on.
    found = any(_PERSONAL.search(text) for text in _texts(record))
    return "holds what looks like a patient's details" if found else None


def _profanity(record: QARecord, reviewer: Reviewer) -> str | None:
    return "swears" if any(_PROFANE.search(text) for text in _texts(record)) else None


def _length(record: QARecord, reviewer: Reviewer) -> str | None:
    implicit = record.kind == "implicit" and record.length is not None
    low, high = LIMITS[record.length] if implicit and record.length else _OTHER_LIMIT
    number = len(record.question.split())
    return None if low <= number <= high else f"{number} words, {low} to {high} are allowed"


def _form(record: QARecord, reviewer: Reviewer) -> str | None:
    """A bare name asks too ("liver?", "the spleen"), but only where naming is allowed."""
    last = _SENTENCE.split(_COURTESY.sub("", record.question).strip())[-1]
    asks = last.rstrip().endswith("?") or _ASKS.search(last) or _COURTESY.search(record.question)
    if asks or record.kind != "implicit":
        return None
    return "ends neither as a question nor as a request"


def _leak(record: QARecord, reviewer: Reviewer) -> str | None:
    if record.kind != "implicit":
        return None
    for target in record.targets:
        found = hidden_name(record.question, reviewer.scene.entities[target.label])
        if found:
            return f"names its target: {found}"
    return None


def _answer(record: QARecord, reviewer: Reviewer) -> str | None:
    if not record.answer:
        return "has no answer"
    for target in record.targets:
        if not reviewer.scene.entities[target.label].is_named_in(record.answer):
            return f"the answer does not name '{target.label}'"
    number, (low, high) = len(record.answer.split()), ANSWER_LIMITS
    if record.kind == "implicit" and not low <= number <= high:
        return f"the answer has {number} words, {low} to {high} are allowed"
    return None


def _place(record: QARecord, reviewer: Reviewer) -> str | None:
    return _claims(record, reviewer, side=False)


def _kind(record: QARecord, reviewer: Reviewer) -> str | None:
    """Words such as "this film" must fit the image; what cannot be here may speak of another."""
    shown = rules.family(record.modality or "")
    if record.kind == "absent" or not shown:
        return None
    text = record.question.lower()
    for pattern, kinds in _KINDS:
        if shown not in kinds and (match := pattern.search(text)):
            return f"speaks of another kind of image: {match[0]}"
    return None


def _laterality(record: QARecord, reviewer: Reviewer) -> str | None:
    return _claims(record, reviewer, side=True)


def _claims(record: QARecord, reviewer: Reviewer, side: bool) -> str | None:
    if len(record.targets) != 1 or record.kind == "referring":
        return None
    label = record.targets[0].label
    claims = list(reviewer.claims.read(record.question, label))
    answered = reviewer.claims.read(record.answer, label)
    # An answer may tell anatomy ("behind the pancreas") that no single slice has to show.
    told = [*claims, *(claim for claim in answered if claim.side or _OF_IMAGE.search(claim.text))]
    if wrong := [claim.text for claim in told if not claim.holds and claim.side == side]:
        return f"not true of the masks: {wrong[0]}"
    if record.perspective == "location" and not claims and not side:
        return "gives no clue that the masks can confirm"
    return None


def _repeated(record: QARecord, reviewer: Reviewer) -> str | None:
    return reviewer.is_repeated(record)


RULES: Mapping[str, Callable[[QARecord, Reviewer], str | None]] = {
    "markup": _markup,
    "patient details": _personal,
    "profanity": _profanity,
    "length": _length,
    "form": _form,
    "name": _leak,
    "answer": _answer,
    "place": _place,
    "laterality": _laterality,
    "kind of image": _kind,
    "repetition": _repeated,
}
"""Name -> test; it gives the reason why a record is dropped, or None."""
