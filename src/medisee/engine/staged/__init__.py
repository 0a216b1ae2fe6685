"""Writers that ask a model stage by stage: caption, describe, review, transform, second pass.

`endpoint_writer(settings, data, work)` asks endpoints that speak OpenAI's chat completions,
`scripted_writer(script, data)` replays a file. Both are a `medisee.engine.writing.Writer`.
"""

from __future__ import annotations

from pathlib import Path

from medisee.engine.staged.asking import Roles
from medisee.engine.staged.calls import CallLog, Script
from medisee.engine.staged.endpoint import Endpoint, Ledger
from medisee.engine.staged.estimate import Estimate, estimate
from medisee.engine.staged.settings import EndpointSettings, WriterSettings, read_settings
from medisee.engine.staged.writer import StagedWriter

__all__ = [
    "CALLS",
    "CallLog",
    "EndpointSettings",
    "Estimate",
    "StagedWriter",
    "WriterSettings",
    "endpoint_writer",
    "estimate",
    "read_settings",
    "scripted_writer",
]

CALLS = "calls.jsonl"
"""File under `work` that keeps every reply that was paid for; a script of the build, too."""


def endpoint_writer(
    settings: WriterSettings, data: Path, work: Path
) -> tuple[StagedWriter, CallLog]:
    """A writer that asks endpoints, and the log of its calls, which is kept in `work`.

    Raises DataError for a key that is not set, MissingExtraError without httpx and tenacity.
    """
    ledger = Ledger(work / CALLS, settings.budget)
    writer = Endpoint(settings.writer, ledger)

    def role(chosen: EndpointSettings | str | None) -> Endpoint | None:
        if isinstance(chosen, EndpointSettings):
            return Endpoint(chosen, ledger)
        return writer if chosen else None

    roles = Roles(writer, role(settings.captioner), role(settings.reviewer))
    return StagedWriter(roles, data, settings.writer.concurrency, ledger.stop.set), ledger.log


def scripted_writer(script: Path, data: Path) -> tuple[StagedWriter, int]:
    """A writer that replays a script, with the stages that it has replies for.

    Also gives the number of its lines that could not be read. Raises DataError without any reply.
    """
    replies = Script(script)
    others = (replies if stage in replies.stages else None for stage in ("caption", "review"))
    return StagedWriter(Roles(replies, *others), data, 1, lambda: None), replies.flawed
