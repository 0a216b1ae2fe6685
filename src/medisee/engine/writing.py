"""The door to whoever writes the questions of an image: offline, an endpoint, or a script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from medisee.engine.dense import write_dense
from medisee.engine.review import Reviewer
from medisee.engine.scene import Scene
from medisee.engine.writers import VERSION
from medisee.structures import QARecord

__all__ = ["OfflineWriter", "Quarantined", "Writer"]


@dataclass(frozen=True)
class Quarantined:
    """Something that a stage should have written about a target and did not, and why.

    `reason` is in words that can be counted; `detail` says more. `again`: asking another time may
    help (the endpoint was down), so the next build tries.
    """

    stage: str
    label: str
    pass_: int
    reason: str
    detail: str = ""
    again: bool = False


class Writer(Protocol):
    """Writes the records of an image; what is written depends on nothing but the image."""

    @property
    def version(self) -> str:
        """Who writes, and in which version; for the summary and the card."""

    @property
    def fingerprint(self) -> str:
        """Of everything in the writer that its records follow from."""

    @property
    def threads(self) -> int:
        """How many images to write about at the same time; 0 for one on each process.

        A writer that has threads waits more than it computes, and is shared by them.
        """

    def write(
        self, scene: Scene, per_target: int, reviewer: Reviewer
    ) -> Iterator[QARecord | Quarantined]:
        """The records of one image that `reviewer` accepts, and what could not be written."""

    def stop(self) -> None:
        """Nothing new is begun in any thread; what waits gives up."""


@dataclass(frozen=True)
class OfflineWriter:
    """The default: curated knowledge and measured geometry, no network."""

    version: str = VERSION
    fingerprint: str = ""  # the engine's own code and texts, which every build looks at
    threads: int = 0

    def write(
        self, scene: Scene, per_target: int, reviewer: Reviewer
    ) -> Iterator[QARecord | Quarantined]:
        """See `write_dense`."""
        return write_dense(scene, per_target, reviewer.accept)

    def stop(self) -> None:
        """Ends with its process."""
