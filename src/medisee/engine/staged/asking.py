"""How a stage asks: the words of a call, and asking again with what was wrong with the reply."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from medisee.engine.review import Reviewer
from medisee.engine.scene import Scene
from medisee.engine.staged.calls import Answering, Call, Kept, Unanswered
from medisee.engine.staged.prompts import STAGES, Stage, parse, prompt
from medisee.engine.writing import Quarantined

__all__ = ["Roles", "View", "as_many", "ask", "listed", "quarantined"]

_ATTEMPTS = 3  # requests for one thing, each with what was wrong with the reply before
_NO_CAPTION = "(there is none)"
T = TypeVar("T")


@dataclass(frozen=True)
class Roles:
    """Who answers which stage: `writer` describes and transforms; None leaves a stage out."""

    writer: Answering
    captioner: Answering | None = None
    reviewer: Answering | None = None

    @property
    def fingerprint(self) -> str:
        """Of everybody."""
        everybody = (self.writer, self.captioner, self.reviewer)
        return "|".join(one.fingerprint if one else "" for one in everybody)

    @property
    def stages(self) -> Sequence[Stage]:
        """The stages that are done, in their order."""
        left_out = {"caption": self.captioner is None, "review": self.reviewer is None}
        return [stage for stage in STAGES if not left_out.get(stage)]


@dataclass
class View:
    """One image as the prompts tell of it; `reviewer` holds the rules as code."""

    roles: Roles
    scene: Scene
    reviewer: Reviewer
    data: Path
    caption: str = ""

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
        """A call of a stage; `values` are its placeholders, `faults` what was wrong before."""
        image = self.scene.image.image
        words = prompt(stage).fill({**values, "faults": _told(faults)})
        return Call(stage, image, label, pass_, attempt, words, self.data / image, items)


def ask(
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


def quarantined(stage: str, label: str, number: int, fault: str) -> Quarantined:
    """A fault "number 2: wrong length: 4 words" is counted as "wrong length"."""
    fault = re.sub(r"^(?:number \d+|(?:attribute|location) (?:short|long)): ", "", fault)
    reason, _, detail = fault.partition(": ")
    return Quarantined(stage, label, number, reason, detail[:200])


def as_many(faults: Sequence[str], missing: Sequence[object] | set[int]) -> list[str]:
    """One fault for each missing thing: their own, or the reply's for all."""
    return [faults[min(n, len(faults) - 1)] for n in range(len(missing))]


def listed(lines: Sequence[str], none: str) -> str:
    """The lines as a list in a prompt."""
    return "\n".join(f"- {line}" for line in lines) or f"({none})"


def _told(faults: Sequence[str]) -> str:
    if not faults:
        return ""
    return "\nThe reply before could not be used, or not all of it:\n" + listed(faults, "")
