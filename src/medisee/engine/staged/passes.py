"""One pass over one target: describe, review, transform."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from medisee.engine import language, phrasing
from medisee.engine.dense import slots
from medisee.engine.review import LIMITS
from medisee.engine.scene import Draft, Scene
from medisee.engine.staged.asking import View, as_many, ask, listed, quarantined
from medisee.engine.staged.calls import Answering, Call, Kept
from medisee.engine.staged.prompts import (
    Description,
    Descriptions,
    Questions,
    Stage,
    Verdicts,
    prompt,
)
from medisee.engine.vocabulary import hidden_name
from medisee.engine.writers import record_of
from medisee.engine.writing import Quarantined
from medisee.structures import QARecord

__all__ = ["WORDINGS", "Pass", "passes"]

WORDINGS = 2
"""Questions made from one description."""

_CLUES = 6

Kind = tuple[Literal["attribute", "location"], Literal["short", "long"]]


@dataclass
class Pass:
    """One pass over one target: `wanted` descriptions, and `most` questions made from them."""

    view: View
    label: str
    number: Literal[1, 2]
    wanted: list[Kind]
    clues: Sequence[str]
    told: list[str]
    most: int
    found: list[Description] = field(default_factory=list)

    def write(self) -> Iterator[QARecord | Quarantined]:
        """The pass's records, and what could not be written. Raises Unanswered."""
        yield from self._describe()
        if self.found and self.view.roles.reviewer is not None:
            yield from self._review(self.view.roles.reviewer)
        if self.found:
            yield from self._transform()

    @property
    def _stage(self) -> Stage:
        return "describe" if self.number == 1 else "second_pass"

    def _values(self) -> dict[str, str]:
        entity = self.view.scene.entities[self.label]
        side = f'Where it has a twin, "on the patient\'s {entity.side}" may be said of this one.'
        return {
            **self.view.facts(),
            "target": self.label,
            "names": ", ".join(entity.terms),
            "side": side if entity.side else "",
        }

    def _call(
        self,
        stage: Stage,
        values: Mapping[str, str],
        attempt: int,
        faults: Sequence[str],
        items: int,
    ) -> Call:
        values = {**self._values(), **values}
        return self.view.call(stage, self.label, self.number, attempt, values, faults, items)

    # describe

    def describe_call(self, attempt: int, faults: Sequence[str]) -> Call:
        """Asks for the descriptions that are still wanted."""
        kinds = dict.fromkeys(self.wanted)
        lines = [f"- {self.wanted.count(kind)} x {kind[0]}, {kind[1]}" for kind in kinds]
        values = {
            "wanted": "\n".join(lines),
            "clues": listed(self.clues, "there are none"),
            "told": listed(self.told, "nothing"),
        }
        return self._call(self._stage, values, attempt, faults, len(self.wanted))

    def _describe(self) -> Iterator[Quarantined]:
        def take(reply: Descriptions, kept: Kept) -> list[str]:
            faults: dict[Kind, str] = {}
            for item in reply.descriptions:
                kind: Kind = (item.perspective, item.length)
                if kind not in self.wanted:
                    continue
                fault = self._fault(item)
                if fault is None:
                    self.wanted.remove(kind)
                    self.found.append(item)
                    self.told.append(item.text)
                else:
                    faults[kind] = fault
            return [f"{' '.join(k)}: {faults.get(k, 'not written')}" for k in self.wanted]

        faults = ask(self.view.roles.writer, Descriptions, self.describe_call, take)
        for _, fault in zip(self.wanted, as_many(faults, self.wanted), strict=True):
            yield quarantined(self._stage, self.label, self.number, fault)

    def _fault(self, item: Description) -> str | None:
        """What the rules will not let pass; found here it costs no further call."""
        low, high = LIMITS[item.length]
        number = len(item.text.split())
        if not low <= number <= high:
            return f"wrong length: {number} words, {low} to {high} are allowed"
        if found := hidden_name(item.text, self.view.scene.entities[self.label]):
            return f"names its target: {found}"
        claims = list(self.view.reviewer.claims.read(item.text, self.label))
        if wrong := [claim.text for claim in claims if not claim.holds]:
            return f"not true of the masks: {wrong[0]}"
        if item.perspective == "location" and not claims:
            return "holds none of the measured phrases word for word"
        if item.text.lower() in map(str.lower, self.told):
            return "written before"
        return None

    # review

    def review_call(self, attempt: int, faults: Sequence[str]) -> Call:
        """Asks the second reader about the descriptions."""
        items = [_item(n, item) for n, item in enumerate(self.found, 1)]
        return self._call("review", {"items": "\n".join(items)}, attempt, faults, len(items))

    def _review(self, second_reader: Answering) -> Iterator[Quarantined]:
        pending = {*range(1, len(self.found) + 1)}
        kept_items: dict[int, Description] = {}
        dropped: list[str] = []

        def take(reply: Verdicts, kept: Kept) -> list[str]:
            faults: dict[int, str] = {}
            for verdict in reply.verdicts:
                number = verdict.number
                if number not in pending:
                    continue
                item = self.found[number - 1]
                if verdict.verdict == "revise" and verdict.text != item.text:
                    item = item.model_copy(update={"text": verdict.text})
                    if fault := self._fault(item):
                        faults[number] = fault
                        continue
                pending.remove(number)
                if verdict.verdict == "drop":
                    dropped.append(verdict.reason)
                else:
                    kept_items[number] = item
            return [f"number {n}: {faults.get(n, 'no verdict')}" for n in sorted(pending)]

        faults = ask(second_reader, Verdicts, self.review_call, take)
        for reason in dropped:
            yield quarantined("review", self.label, self.number, f"dropped: {reason}")
        for _, fault in zip(sorted(pending), as_many(faults, pending), strict=True):
            yield quarantined("review", self.label, self.number, fault)
        self.found = [kept_items[n] for n in sorted(kept_items)]

    # transform

    def transform_call(self, attempt: int, faults: Sequence[str]) -> Call:
        """Asks for all questions from the descriptions."""
        return self._transform_call(self._pending(), attempt, faults)

    def _transform_call(
        self, pending: Mapping[int, int], attempt: int, faults: Sequence[str]
    ) -> Call:
        items = [
            f"{_item(n, self.found[n - 1])}\n   questions: {count}" for n, count in pending.items()
        ]
        number = sum(pending.values())
        return self._call("transform", {"items": "\n".join(items)}, attempt, faults, number)

    def _pending(self) -> dict[int, int]:
        """Number of a description -> questions to be made from it."""
        left, pending = self.most, {}
        for number in range(1, len(self.found) + 1):
            pending[number] = min(WORDINGS, left)
            left -= pending[number]
        return pending

    def _transform(self) -> Iterator[QARecord | Quarantined]:
        pending = self._pending()
        records: list[QARecord] = []

        def call(attempt: int, faults: Sequence[str]) -> Call:
            return self._transform_call(pending, attempt, faults)

        def take(reply: Questions, kept: Kept) -> list[str]:
            faults: dict[int, str] = {}
            for item in reply.questions:
                if item.number not in pending:
                    continue
                record = self._record(self.found[item.number - 1], item.question, item.answer, kept)
                if (accepted := self.view.reviewer.accept(record)) is None:
                    dropped = self.view.reviewer.dropped[-1]
                    faults[item.number] = f"{dropped.rule}: {dropped.reason}"
                    continue
                records.append(accepted)
                pending[item.number] -= 1
                if not pending[item.number]:
                    del pending[item.number]
            return [f"number {n}: {faults.get(n, 'not written')}" for n in pending]

        faults = ask(self.view.roles.writer, Questions, call, take)
        yield from records
        missing = [number for number, count in pending.items() for _ in range(count)]
        for _, fault in zip(missing, as_many(faults, missing), strict=True):
            yield quarantined("transform", self.label, self.number, fault)

    def _record(self, item: Description, question: str, answer: str, kept: Kept) -> QARecord:
        draft = Draft("implicit", question, answer, (self.label,), item.perspective)
        record = record_of(draft, self.view.scene, item.length, self.number)
        other = "second_pass" if self.number == 1 else "describe"
        names = [prompt(stage).name for stage in self.view.roles.stages if stage != other]
        return record.model_copy(update={"writer": kept.writer, "prompt_version": "+".join(names)})


def passes(view: View, label: str, per_target: int) -> Iterator[Pass]:
    """Both passes over a target; the second knows what the first one told."""
    alone = len(view.scene.shapes) == 1
    wanted = [*slots(-(-per_target // WORDINGS), alone)]
    clues = _clues(view.scene, label)
    told: list[str] = []
    left = per_target
    numbers: tuple[Literal[1, 2], ...] = (1, 2)
    for number in numbers:
        # As with the offline writer: where no clue fits, an attribute takes the place.
        own: list[Kind] = [
            (slot.perspective if clues else "attribute", slot.length)
            for slot in wanted
            if slot.pass_ == number
        ]
        if own:
            yield Pass(view, label, number, own, clues, told, min(left, WORDINGS * len(own)))
            left -= WORDINGS * len(own)


def _clues(scene: Scene, label: str) -> list[str]:
    """Some phrases of place and size that are true, the same in every run; places first."""
    found = phrasing.clues_of(scene, label)
    random.Random(f"{scene.image.image}|{label}").shuffle(found)
    found.sort(key=lambda clue: not clue.place)
    texts = []
    for clue in found[:_CLUES]:
        text = clue.text.replace("{m}", "image")
        for other in re.findall("{([^{}]+)}", text):
            text = text.replace("{" + other + "}", language.with_article(language.spoken(other)))
        texts.append(text)
    return texts


def _item(number: int, item: Description) -> str:
    return f"{number}. ({item.perspective}, {item.length}) {item.text}"
