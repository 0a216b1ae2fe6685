"""The staged writer: caption, describe, review, transform and a second pass, as in the paper.

Who answers the stages' prompts is exchangeable: endpoints, or a script. Whatever comes back is
checked at once, by the form of the reply and by the same rules as every record; what is wrong is
asked for again with the reason, and what stays wrong is quarantined.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from medisee.engine.dense import write_besides
from medisee.engine.review import Reviewer
from medisee.engine.scene import Scene
from medisee.engine.staged.asking import Roles, View, ask, quarantined
from medisee.engine.staged.calls import Answering, Call, Kept, Unanswered
from medisee.engine.staged.passes import passes
from medisee.engine.staged.prompts import Caption, Description, prompt
from medisee.engine.writing import Quarantined
from medisee.structures import QARecord

__all__ = ["StagedWriter"]

_CAPTION_WORDS = 60
_WORDS = "word " * 12  # as long as most descriptions


@dataclass(frozen=True)
class StagedWriter:
    """Writes the implicit questions through prompts; the other kinds as the offline writer does.

    data: the data set's folder, where the images are that may be sent along.
    threads: images that are written about at the same time.
    stop: as in `medisee.engine.writing.Writer`.
    """

    roles: Roles
    data: Path
    threads: int
    stop: Callable[[], None]

    @property
    def version(self) -> str:
        """Who answers, and the prompts' versions."""
        names = ", ".join(prompt(stage).name for stage in self.roles.stages)
        return f"{self.roles.writer.model} ({names})"

    @property
    def fingerprint(self) -> str:
        """Of the answerers, the prompts and this package."""
        digest = hashlib.sha256(f"{self.roles.fingerprint}|{self.version}".encode())
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
        yield from self._implicit(View(self.roles, scene, reviewer, self.data), per_target)
        yield from write_besides(scene, per_target, reviewer.accept)

    def _implicit(self, view: View, per_target: int) -> Iterator[QARecord | Quarantined]:
        waiting, number = list(view.scene.shapes), 1
        try:
            if self.roles.captioner is not None:
                yield from _look(view, self.roles.captioner)
            while waiting:
                for one in passes(view, waiting[0], per_target):
                    number = one.number
                    yield from one.write()
                del waiting[0]
        except Unanswered as error:
            for label in waiting:
                yield Quarantined("writer", label, number, str(error), again=True)

    def rehearse(self, scene: Scene, per_target: int) -> Iterator[tuple[Answering, Call]]:
        """The calls for an image if each reply were good, with words in the replies' place."""
        if not scene.shapes:
            return
        roles, caption = self.roles, "word " * _CAPTION_WORDS
        view = View(roles, scene, Reviewer(scene), self.data, caption if roles.captioner else "")
        if roles.captioner is not None:
            yield roles.captioner, _caption_call(view, 0, ())
        for label in scene.shapes:
            for one in passes(view, label, per_target):
                yield roles.writer, one.describe_call(0, ())
                one.found = [
                    Description(perspective=perspective, length=length, text=_WORDS)
                    for perspective, length in one.wanted
                ]
                one.told += [_WORDS] * len(one.found)
                if roles.reviewer is not None:
                    yield roles.reviewer, one.review_call(0, ())
                yield roles.writer, one.transform_call(0, ())


def _caption_call(view: View, attempt: int, faults: Sequence[str]) -> Call:
    facts = view.facts()
    values = {key: facts[key] for key in ("modality", "body_part", "plane")}
    return view.call("caption", "", 1, attempt, values, faults, 1)


def _look(view: View, captioner: Answering) -> Iterator[Quarantined]:
    """The caption, without what the labels make impossible."""

    def call(attempt: int, faults: Sequence[str]) -> Call:
        return _caption_call(view, attempt, faults)

    def take(reply: Caption, kept: Kept) -> list[str]:
        view.caption = _trusted(reply.caption, view.scene)
        return []

    if faults := ask(captioner, Caption, call, take):
        yield quarantined("caption", "", 1, faults[0])


def _trusted(caption: str, scene: Scene) -> str:
    """The caption without sentences about what cannot be in the image; labels win."""
    impossible = [entity for group in scene.absent.values() for entity in group]
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(caption.split()))
    kept = [
        text for text in sentences if not any(entity.is_named_in(text) for entity in impossible)
    ]
    return " ".join(" ".join(kept).split()[:_CAPTION_WORDS])
