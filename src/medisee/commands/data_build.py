"""`medisee data build`: a reasoning data set from labelled images."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medisee.commands.data_stats import show_stats
from medisee.commands.options import JsonOption
from medisee.commands.screen import print_error, print_json, print_text, progress
from medisee.errors import InputError

if TYPE_CHECKING:
    from medisee.engine.assemble import Assembly
    from medisee.engine.staged import CallLog, StagedWriter

__all__ = ["build_data"]

_WRITERS = "Who writes"

Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="Folder in SA-Med2D's layout (see data import).")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the set that is built.")]
PerTarget = Annotated[
    int, typer.Option(min=1, max=64, help="Implicit questions for each category of each image.")
]
Seed = Annotated[int, typer.Option(help="Another seed gives other questions.")]
Shard = Annotated[
    str,
    typer.Option(metavar="I/N", help="Do the I-th of N shares of the work, such as 2/5."),
]
Workers = Annotated[int, typer.Option(min=0, help="Processes; 0 for one on each processor.")]
RayAddress = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Let a Ray cluster do the work: auto, ray://HOST:10001, or local to start one.",
    ),
]
Endpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.yaml",
        help="A model behind an OpenAI-compatible endpoint writes; these are its settings.",
        rich_help_panel=_WRITERS,
    ),
]
Script = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.jsonl",
        help="Replies written before are used, such as work/calls.jsonl of another build.",
        rich_help_panel=_WRITERS,
    ),
]
OnlyEstimate = Annotated[
    bool,
    typer.Option(
        "--estimate",
        help="Tell what the endpoint's calls will cost, and do nothing.",
        rich_help_panel=_WRITERS,
    ),
]


def build_data(
    data: Data,
    out: Out,
    per_target: PerTarget = 16,
    seed: Seed = 0,
    shard: Shard = "1/1",
    workers: Workers = 0,
    ray: RayAddress = "",
    endpoint: Endpoint = None,
    script: Script = None,
    only_estimate: OnlyEstimate = False,
    as_json: JsonOption = False,
) -> None:
    """Build a reasoning data set from labelled images: questions, answers, splits, data card.

    Writes DIR/train.jsonl, val.jsonl, test.jsonl and card.md; everything else, with what was left
    out and why, is in DIR/work. The same input gives the same files. A build that was stopped at
    any moment goes on when it is started again.

    The offline writer needs no network. With --endpoint a model of your choice writes, stage by
    stage; no call is paid for twice, and the settings can hold a budget.

    Example: medisee data build data --out mlmr-sd
    """
    share = _shard(shard)
    if ray and (endpoint or script):
        raise InputError("--ray is for the offline writer: calls share one pace and one budget")
    writer, log = _writer(data, out, endpoint, script)
    if log is not None or only_estimate:
        _tell_estimate(writer, data, per_target, only_estimate, as_json)
    if only_estimate:
        return
    with _bar() as advance:
        from medisee.engine.build import Settings, build

        built = build(
            data,
            out,
            Settings(per_target=per_target, seed=seed),
            writer=writer,
            shard=share,
            workers=workers or os.cpu_count() or 1,
            ray=ray,
            progress=advance,
        )
    if built is None:
        print_text(f"Share {shard} is done; the run that finds all shares done writes the set.")
    else:
        _tell_built(built, out, as_json)
    if log is not None:
        _tell_spent(log)
    if built is not None:
        _tell_quarantined(built.stats.build["quarantined"], out)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar, as a function of how many images are done and of how many."""
    from rich.progress import Progress

    with Progress(console=progress(), transient=True) as bar:
        task = bar.add_task("Images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _tell_built(built: Assembly, out: Path, as_json: bool) -> None:
    if as_json:
        print_json(built.stats.to_dict())
    else:
        show_stats(built.stats)
        print_text(f"The set is in {out}; {out / 'card.md'} describes it.")


def _writer(
    data: Path, out: Path, endpoint: Path | None, script: Path | None
) -> tuple[StagedWriter | None, CallLog | None]:
    """Who writes (None: the offline writer), and the log of the calls that cost."""
    if endpoint is not None and script is not None:
        raise InputError("--endpoint and --script are two writers; give one of them")
    if endpoint is not None:
        from medisee.engine.staged import endpoint_writer, read_settings

        return endpoint_writer(read_settings(endpoint), data, out / "work")
    if script is not None:
        from medisee.engine.staged import scripted_writer

        writer, flawed = scripted_writer(script, data)
        if flawed:
            print_error(f"{script.name}: {flawed:,} lines are no replies and are passed over")
        return writer, None
    return None, None


def _tell_estimate(
    writer: StagedWriter | None, data: Path, per_target: int, alone: bool, as_json: bool
) -> None:
    """On standard error before a run; on standard output when nothing else was asked for."""
    from medisee.engine.staged import Estimate, estimate

    told = estimate(writer, data, per_target) if writer is not None else Estimate()
    stages = ", ".join(f"{stage} {number:,}" for stage, number in told.calls.items())
    line = (
        f"About {sum(told.calls.values()):,} calls ({stages or 'none'}), {told.tokens_in:,.0f} "
        f"tokens in and {told.tokens_out:,.0f} out, cost {told.cost:,.4f}, if no reply is asked "
        "for again. Replies that are there already cost nothing."
    )
    if alone and as_json:
        print_json({**asdict(told), "calls": dict(told.calls)})
    else:
        (print_text if alone else print_error)(line)


def _tell_spent(log: CallLog) -> None:
    print_error(
        f"Calls so far: {log.calls:,}, {log.tokens[0]:,} tokens in and {log.tokens[1]:,} out, "
        f"cost {log.spent:,.4f}."
    )
    if log.flawed:
        print_error(f"{log.flawed:,} lines of the call log could not be read and were passed over.")


def _tell_quarantined(counts: Mapping[str, int], out: Path) -> None:
    if not counts:
        return
    told = out / "work" / "quarantined.jsonl"
    print_error(f"{sum(counts.values()):,} times nothing usable was written; {told} says why.")
    if any(reason.startswith("writer: ") for reason in counts):
        print_error("Run the same command again to ask for what the endpoint did not answer.")


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--shard must be I/N with I from 1 to N, such as 2/5, not '{text}'")
    return int(match[1]), int(match[2])
