"""`medisee data screen`: people judge the records of a set, on a page in their browser."""

from __future__ import annotations

import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medisee.commands.screen import output, plain_table, print_error, print_text, spinner
from medisee.errors import DataError, InputError
from medisee.extras import needs_extra

if TYPE_CHECKING:
    from medisee.engine.verdicts import VerdictStore
    from medisee.structures import QARecord

__all__ = ["screen_data"]

_SPLITS = ("train", "val", "test")


def screen_data(
    source: Annotated[
        Path, typer.Argument(metavar="SET", help="Folder of a built set, or one file of records.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the images that the set was built from. Default: SET."),
    ] = None,
    verdicts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where verdicts are kept. Default: beside the records."),
    ] = None,
    overlap: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the records that everybody judges.")
    ] = 0.2,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8766,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="MEDISEE_TOKEN",
            show_envvar=True,
            help="What the page asks for first; needed where other machines can reach it.",
        ),
    ] = None,
    browse: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser.")
    ] = True,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Open no page; write the records as judged."),
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Open no page; print what was judged.")
    ] = False,
) -> None:
    """Judge the records of a set, one after the other: keep, edit, drop or skip.

    Opens a page; give a name there. Several people can share the work, each under a name of
    their own. Every verdict is on the disk at once; at the end, and with --summary, it prints
    how far the screeners agree (Cohen's kappa). --write makes the screened set.

    Example: medisee data screen mlmr-sd --data data
    """
    from medisee.engine.verdicts import VerdictStore

    files = _files(source)
    store = VerdictStore(verdicts or _default_store(source))
    if write is not None:
        _write(files, store, write)
    if write is None and not summary:
        _serve(files, data or source, store, overlap, host, port, token, browse)
    _show(store)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    files = [path for name in _SPLITS if (path := source / f"{name}.jsonl").is_file()]
    if not files:
        raise DataError(f"{source}: is neither a built set nor a file of records")
    return files


def _default_store(source: Path) -> Path:
    if source.is_file():
        return source.with_suffix(".verdicts.jsonl")
    return source / "work" / "verdicts.jsonl"


def _write(files: list[Path], store: VerdictStore, path: Path) -> None:
    from medisee.data.mlmr_sd import read_records, write_records
    from medisee.engine.verdicts import screened

    if any(path.exists() and path.samefile(file) for file in files):
        raise InputError(f"{path}: is the set itself; write to another file")

    def records() -> Iterator[QARecord]:
        for file in files:
            yield from read_records(file)

    print_text(f"{write_records(path, screened(records(), store)):,} records are in {path}.")


def _serve(
    files: list[Path],
    data: Path,
    store: VerdictStore,
    overlap: float,
    host: str,
    port: int,
    token: str | None,
    browse: bool,
) -> None:
    from medisee.data.sa_med2d import Index

    with needs_extra("the screening page", "serve"):
        from medisee.serve.screening import Queue, screening_app
        from medisee.serve.server import address_of, check_exposure, is_loopback, listen, run
    check_exposure(host, token)
    folder = data if data.is_dir() else data.parent
    with spinner("Reading the records ..."):
        queue = Queue(files, Index.open(folder), store, overlap)
    app = screening_app(queue, token, loopback=is_loopback(host))
    listening = listen(host, port)
    address = address_of(listening, host)
    print_text(f"{len(queue.places):,} records at {address} (Ctrl-C ends it)", wrap=False)
    if browse and sys.stdout.isatty():
        threading.Timer(0.5, webbrowser.open, [address]).start()
    with suppress(KeyboardInterrupt):
        run(app, listening)


def _show(store: VerdictStore) -> None:
    """Who decided what, and how far they agree."""
    from medisee.engine.verdicts import agreements

    rows = [
        [name, *(str(store.counts(name)[what]) for what in ("keep", "edit", "drop", "skip"))]
        for name in store.screeners
    ]
    if not rows:
        print_error("nobody has judged anything yet")
        return
    output().print(plain_table(["screener", "keep", "edit", "drop", "skip"], rows, {1, 2, 3, 4}))
    pairs = [
        [
            f"{one.screeners[0]}, {one.screeners[1]}",
            str(one.common),
            f"{one.same / one.common:.0%}" if one.common else "-",
            "not defined" if one.kappa is None else f"{one.kappa:.2f}",
        ]
        for one in agreements(store)
    ]
    if pairs:
        head = ["screeners", "both judged", "same", "Cohen's kappa"]
        output().print(plain_table(head, pairs, {1, 2, 3}))
