"""The staged writer: caption, describe, review, transform and a second pass, as in the paper.

Who answers the stages' prompts is exchangeable: endpoints, or a script. Whatever comes back is
checked at once, by the form of the reply and by the same rules as every record; what is wrong is
asked for again with the reason, and what stays wrong is quarantined.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal, TypeVar

from medisee.engine import language, phrasing
from medisee.engine.dense import Slot, slots, write_besides
from medisee.engine.review import LIMITS, Reviewer
from medisee.engine.scene import Draft, Scene
from medisee.engine.staged.calls import Answering, Call, Kept, Unanswered
from medisee.engine.staged.prompts import (
    STAGES,
    Caption,
    Description,
    Descriptions,
    Questions,
    Stage,
    Verdicts,
    parse,
    prompt,
)
from medisee.engine.vocabulary import hidden_name
from medisee.engine.writers import record_of
from medisee.engine.writing import Quarantined
from medisee.structures import QARecord

__all__ = ["WORDINGS", "StagedWriter"]

WORDINGS = 2
"""Questions made from one description."""

_ATTEMPTS = 3  # requests for one thing, each with what was wrong with the reply before
_CLUES = 6
_CAPTION_WORDS = 60
_NO_CAPTION = "(there is none)"
T = TypeVar("T")


@dataclass(frozen=True)
class StagedWriter:
    """Writes the implicit questions through prompts; the other kinds as the offline writer does.

    writer: describes and transforms. captioner, reviewer: None leaves the stage out.
    data: the data set's folder, where the images are that may be sent along.
    threads: images that are written about at the same time.
    answered_by: all that the replies follow from, besides the calls.
    stop: as in `medisee.engine.writing.Writer`.
    """

    writer: Answering
    captioner: Answering | None
    reviewer: Answering | None
    data: Path
    threads: int
    answered_by: str
    stop: Callable[[], None]

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages that are done, in their order."""
        left_out = {"caption": self.captioner is None, "review": self.reviewer is None}
        return [stage for stage in STAGES if not left_out.get(stage)]

    @property
    def version(self) -> str:
        """Who answers, and the prompts' versions."""
        return f"{self.writer.model} ({', '.join(prompt(stage).name for stage in self.stages)})"

    @property
    def fingerprint(self) -> str:
        """Of the answerers, the prompts and this package."""
        digest = hashlib.sha256(f"{self.answered_by}|{self.version}".encode())
        package = resources.files("medisee.engine")
        for folder in ("prompts", "staged"):
            for file in sorted((package / folder).iterdir(), key=lambda file: file.name):
                if file.name.endswith((".md", ".py")):
                    digest.update(file.read_bytes())
        return digest.hexdigest()

    def write(
        self, scene: Scene, per_target: int, reviewer: Reviewer
    ) -> Iterator[QARecord | Quarantined]:
        """Two passes over each target, then what the offline writer adds.

        When an endpoint does not answer, the rest of the image waits for another build: what would
        be asked next depends on the reply.
        """
        if not scene.shapes:
            return
        written = _Image(self, scene, reviewer)
        yield from written.implicit(per_target)
        yield from write_besides(scene, per_target, reviewer.accept)

    def rehearse(self, scene: Scene, per_target: int) -> Iterator[tuple[Answering, Call]]:
        """The calls for an image if each reply were good, with words in the replies' place."""
        if not scene.shapes:
            return
        image = _Image(self, scene, Reviewer(scene), caption="word " * _CAPTION_WORDS)
        if self.captioner is not None:
            yield self.captioner, image.caption_call(0, ())
        for label in scene.shapes:
            for one in image.passes(label, per_target):
                one.told = ["word " * 12] * (len(one.wanted) if one.number == 2 else 0)
                yield self.writer, one.describe_call(0, ())
                one.found = [
                    Description(perspective=p, length=size, text="word " * 12)
                    for p, size in one.wanted
                ]
                if self.reviewer is not None:
                    yield self.reviewer, one.review_call(0, ())
                yield self.writer, one.transform_call(0, ())


@dataclass
class _Image:
    """The stages of one image."""

    writer: StagedWriter
    scene: Scene
    reviewer: Reviewer
    caption: str = ""

    def implicit(self, per_target: int) -> Iterator[QARecord | Quarantined]:
        label, number = "", 1
        try:
            if self.writer.captioner is not None:
                yield from self._look(self.writer.captioner)
            for label in self.scene.shapes:
                for one in self.passes(label, per_target):
                    number = one.number
                    yield from one.write()
        except Unanswered as error:
            waiting = list(self.scene.shapes)
            for other in waiting[waiting.index(label) if label else 0 :]:
                yield Quarantined("writer", other, number, str(error), again=True)

    def passes(self, label: str, per_target: int) -> Iterator[_Pass]:
        """Both passes over a target; the second knows what the first one told."""
        alone = len(self.scene.shapes) == 1
        wanted = [*slots(-(-per_target // WORDINGS), alone)]
        clues = _clues(self.scene, label)
        told: list[str] = []
        left = per_target
        for number in (1, 2):
            own = [_kind_of(slot, bool(clues)) for slot in wanted if slot.pass_ == number]
            if own:
                most = min(left, WORDINGS * len(own))
                yield _Pass(self, label, 1 if number == 1 else 2, own, clues, told, most)
                left -= most

    def caption_call(self, attempt: int, faults: Sequence[str]) -> Call:
        facts = self.facts()
        values = {key: facts[key] for key in ("modality", "body_part", "plane")}
        return self.call("caption", "", 1, attempt, values, faults, 1)

    def _look(self, captioner: Answering) -> Iterator[Quarantined]:
        """The caption, without what the labels make impossible."""

        def take(reply: Caption, kept: Kept) -> list[str]:
            self.caption = _trusted(reply.caption, self.scene)
            return []

        if faults := _ask(captioner, Caption, self.caption_call, take):
            yield _quarantined("caption", "", 1, faults[0])

    def facts(self) -> dict[str, str]:
        """What every prompt may tell of the image: never a name, a patient or a source."""
        image, first = self.scene.image, next(iter(self.scene.shapes.values()))
        marked = []
        for label, shape in self.scene.shapes.items():
            box = ", ".join(f"{edge:.0f}" for edge in shape.box)
            marked.append(f"- {label}: {box}")
        return {
            "modality": image.modality or "not stated",
            "body_part": image.body_part or "not stated",
            "plane": image.plane or "not stated",
            "size": f"{first.width} x {first.height} pixels",
            "labels": "\n".join(marked),
            "structures": ", ".join(self.scene.shapes),
            "caption": self.caption or _NO_CAPTION,
        }

    def call(
        self,
        stage: Stage,
        label: str,
        pass_: int,
        attempt: int,
        values: Mapping[str, str],
        faults: Sequence[str],
        items: int,
    ) -> Call:
        image = self.scene.image.image
        words = prompt(stage).fill({**values, "faults": _faults(faults)})
        return Call(stage, image, label, pass_, attempt, words, self.writer.data / image, items)


Kind = tuple[Literal["attribute", "location"], Literal["short", "long"]]


@dataclass
class _Pass:
    """One pass over one target: `wanted` descriptions, and `most` questions made from them."""

    image: _Image
    label: str
    number: Literal[1, 2]
    wanted: list[Kind]
    clues: Sequence[str]
    told: list[str]
    most: int
    found: list[Description] = field(default_factory=list)

    def write(self) -> Iterator[QARecord | Quarantined]:
        yield from self._describe()
        if self.found and self.image.writer.reviewer is not None:
            yield from self._review(self.image.writer.reviewer)
        if self.found:
            yield from self._transform()

    @property
    def _stage(self) -> Stage:
        return "describe" if self.number == 1 else "second_pass"

    def _values(self) -> dict[str, str]:
        entity = self.image.scene.entities[self.label]
        side = f'Where it has a twin, "on the patient\'s {entity.side}" may be said of this one.'
        return {
            **self.image.facts(),
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
        return self.image.call(stage, self.label, self.number, attempt, values, faults, items)

    # describe

    def describe_call(self, attempt: int, faults: Sequence[str]) -> Call:
        kinds = dict.fromkeys(self.wanted)
        lines = [f"- {self.wanted.count(kind)} x {kind[0]}, {kind[1]}" for kind in kinds]
        values = {
            "wanted": "\n".join(lines),
            "clues": _listed(self.clues, "there are none"),
            "told": _listed(self.told, "nothing"),
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

        faults = _ask(self.image.writer.writer, Descriptions, self.describe_call, take)
        for _, fault in zip(self.wanted, _as_many(faults, self.wanted), strict=True):
            yield _quarantined(self._stage, self.label, self.number, fault)

    def _fault(self, item: Description) -> str | None:
        """What the rules will not let pass; found here it costs no further call."""
        low, high = LIMITS[item.length]
        number = len(item.text.split())
        if not low <= number <= high:
            return f"wrong length: {number} words, {low} to {high} are allowed"
        if found := hidden_name(item.text, self.image.scene.entities[self.label]):
            return f"names its target: {found}"
        claims = list(self.image.reviewer.claims.read(item.text, self.label))
        if wrong := [claim.text for claim in claims if not claim.holds]:
            return f"not true of the masks: {wrong[0]}"
        if item.perspective == "location" and not claims:
            return "holds none of the measured phrases word for word"
        if item.text.lower() in map(str.lower, self.told):
            return "written before"
        return None

    # review

    def review_call(self, attempt: int, faults: Sequence[str]) -> Call:
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

        faults = _ask(second_reader, Verdicts, self.review_call, take)
        for reason in dropped:
            yield _quarantined("review", self.label, self.number, f"dropped: {reason}")
        for _, fault in zip(sorted(pending), _as_many(faults, pending), strict=True):
            yield _quarantined("review", self.label, self.number, fault)
        self.found = [kept_items[n] for n in sorted(kept_items)]

    # transform

    def transform_call(self, attempt: int, faults: Sequence[str]) -> Call:
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
                if (accepted := self.image.reviewer.accept(record)) is None:
                    dropped = self.image.reviewer.dropped[-1]
                    faults[item.number] = f"{dropped.rule}: {dropped.reason}"
                    continue
                records.append(accepted)
                pending[item.number] -= 1
                if not pending[item.number]:
                    del pending[item.number]
            return [f"number {n}: {faults.get(n, 'not written')}" for n in pending]

        faults = _ask(self.image.writer.writer, Questions, call, take)
        yield from records
        missing = [number for number, count in pending.items() for _ in range(count)]
        for _, fault in zip(missing, _as_many(faults, missing), strict=True):
            yield _quarantined("transform", self.label, self.number, fault)

    def _record(self, item: Description, question: str, answer: str, kept: Kept) -> QARecord:
        draft = Draft("implicit", question, answer, (self.label,), item.perspective)
        record = record_of(draft, self.image.scene, item.length, self.number)
        other = "second_pass" if self.number == 1 else "describe"
        names = [prompt(stage).name for stage in self.image.writer.stages if stage != other]
        return record.model_copy(update={"writer": kept.writer, "prompt_version": "+".join(names)})


def _ask(
    answering: Answering,
    form: type[T],
    call: Callable[[int, Sequence[str]], Call],
    take: Callable[[T, Kept], list[str]],
) -> list[str]:
    """Asks until `take` finds nothing wrong; gives what was wrong with the last reply.

    Raises Unanswered where there is no reply and another time there may be one.
    """
    faults: list[str] = []
    for attempt in range(_ATTEMPTS):
        asked = call(attempt, faults)
        try:
            kept = answering.answer(asked)
        except Unanswered as error:
            if error.again:
                raise
            return faults or [str(error)]
        if kept.flaw:
            faults = [kept.flaw]
            continue
        try:
            reply = parse(asked.stage, kept.text)
        except ValueError as error:
            faults = [str(error)]
            continue
        assert isinstance(reply, form)
        faults = take(reply, kept)
        if not faults:
            break
    return faults


def _quarantined(stage: str, label: str, number: int, fault: str) -> Quarantined:
    """A fault "number 2: wrong length: 4 words" is counted as "wrong length"."""
    fault = re.sub(r"^(?:number \d+|(?:attribute|location) (?:short|long)): ", "", fault)
    reason, _, detail = fault.partition(": ")
    return Quarantined(stage, label, number, reason, detail[:200])


def _as_many(faults: Sequence[str], missing: Sequence[object] | set[int]) -> list[str]:
    """One fault for each missing thing: their own, or the reply's for all."""
    return [faults[min(n, len(faults) - 1)] for n in range(len(missing))]


def _kind_of(slot: Slot, has_clues: bool) -> Kind:
    """As the offline writer: where no clue fits, an attribute takes the place."""
    return (slot.perspective if has_clues else "attribute", slot.length)


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


def _trusted(caption: str, scene: Scene) -> str:
    """The caption without sentences about what cannot be in the image; labels win."""
    impossible = [entity for group in scene.absent.values() for entity in group]
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(caption.split()))
    kept = [
        text for text in sentences if not any(entity.is_named_in(text) for entity in impossible)
    ]
    return " ".join(" ".join(kept).split()[:_CAPTION_WORDS])


def _item(number: int, item: Description) -> str:
    return f"{number}. ({item.perspective}, {item.length}) {item.text}"


def _listed(lines: Sequence[str], none: str) -> str:
    return "\n".join(f"- {line}" for line in lines) or f"({none})"


def _faults(faults: Sequence[str]) -> str:
    if not faults:
        return ""
    return "\nThe reply before could not be used, or not all of it:\n" + _listed(faults, "")
