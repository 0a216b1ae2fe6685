"""The command line: one table of commands, each imported only when it is used.

Exit codes: 0 done (a refusal is an answer), 1 a fault of MediSee itself, 2 input that cannot be
used, 3 a refusal when `--fail-on-refusal` asks for it, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import medisee
from medisee.commands.screen import plain
from medisee.errors import MediSeeError
from medisee.quiet import silence_readers

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "ask": "medisee.commands.ask:ask",
    "batch": "medisee.commands.batch:batch",
    "chat": "medisee.commands.chat:chat",
    "serve": "medisee.commands.serve:serve",
    "mcp": "medisee.commands.mcp:mcp",
    "examples": "medisee.commands.examples:examples",
    "targets": "medisee.commands.targets:targets",
    "models": "medisee.commands.models:models",
    "models make-random": "medisee.commands.models:make_random",
    "train": "medisee.commands.train:train",
    "finetune": "medisee.commands.finetune:finetune",
    "ablate": "medisee.commands.ablate:ablate",
    "evaluate": "medisee.commands.evaluate:evaluate",
    "bench systems": "medisee.commands.bench:systems",
    "bench run": "medisee.commands.bench:run",
    "bench score": "medisee.commands.bench:score",
    "bench table": "medisee.commands.bench:table",
    "bench probe": "medisee.commands.bench:probe",
    "bench contamination": "medisee.commands.bench:contamination",
    "reproduce": "medisee.commands.reproduce:reproduce",
    "compile": "medisee.commands.compile:compile_model",
    "convert": "medisee.commands.convert:convert",
    "data import": "medisee.commands.data_import:import_data",
    "data build": "medisee.commands.data_build:build_data",
    "data stats": "medisee.commands.data_stats:data_stats",
    "data screen": "medisee.commands.data_screen:screen_data",
    "data export": "medisee.commands.data_export:export_data",
}
"""Command -> "module:function"; the function's signature and docstring are the command's."""

GROUPS = {
    "data": "Data sets: bring labelled images in, build questions, tell what is there.",
    "bench": "Systems compared: run, score, the paper's tables with our figures beside them.",
}
"""First words that several commands share, and what unites them."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line on `argv` (default: the process's own) and exit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not _debugging():
        _silence_others()
    try:
        code = _build(arguments)(
            arguments or ["--help"], prog_name="medisee", standalone_mode=False
        )
    except MediSeeError as error:
        _leave(str(error), error.exit_code)
    except OSError as error:
        _leave(_describe(error), MediSeeError.exit_code)
    except MemoryError:
        _leave("not enough memory; try a smaller image or close other programs", 2)
    except Exception as error:  # noqa: BLE001 - the last stop before the user
        if hasattr(error, "format_message"):  # Typer's usage errors; their class is not public
            _leave(_usage(error), 2)
        _leave(_report(error), 1)
    sys.exit(code or 0)


def _build(arguments: list[str]) -> typer.Typer:
    """The app with the one command that `arguments` name, or with all (help, typing errors)."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_top)
    named = next((word for word in arguments if not word.startswith("-")), "")
    chosen = [name for name in COMMANDS if name.split()[0] == named] or list(COMMANDS)
    groups: dict[str, typer.Typer] = {}
    for name in chosen:
        *first, last = name.split()
        parent = _group(app, groups, first[0]) if first else app
        module, function = COMMANDS[name].split(":")
        command = getattr(import_module(module), function)
        if any(other.startswith(f"{name} ") for other in COMMANDS):
            group = _group(app, groups, name)
            group.callback(invoke_without_command=True, help=command.__doc__)(command)
        else:
            parent.command(last)(command)
    return app


def _group(app: typer.Typer, groups: dict[str, typer.Typer], name: str) -> typer.Typer:
    """The group of commands that begin with `name`; made with its first one."""
    if name not in groups:
        # One that is a command itself, too, does something without another word.
        groups[name] = typer.Typer(
            help=GROUPS.get(name), no_args_is_help=name in GROUPS, rich_markup_mode="markdown"
        )
        app.add_typer(groups[name], name=name)
    return groups[name]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medisee {medisee.__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Ask a medical image a question; get a mask, a box and an explanation.

    Try: medisee ask example:abdomen-mr "Which organ makes bile?"

    A research tool, not a medical device.
    """


def _silence_others() -> None:
    """Warnings and bars of the packages below mean nothing to a user, and spoil the screen."""
    silence_readers()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' too
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _debugging() -> bool:
    return bool(os.environ.get("MEDISEE_DEBUG"))


def _leave(line: str, code: int) -> NoReturn:
    """Print one line for the user on standard error and exit."""
    if _debugging() and sys.exc_info()[0] is not None:
        traceback.print_exc()
    typer.echo(f"medisee: {plain(line)}", err=True)
    sys.exit(code)


def _usage(error: Any) -> str:
    """What is wrong with the words after `medisee`, and where help is."""
    command = getattr(error.ctx, "command_path", "medisee")
    message = error.format_message().rstrip()
    stop = "" if message.endswith((".", "?")) else "."
    return f"{message}{stop} Try: {command} --help"


def _describe(error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return f"{reason}: {error.filename}" if error.filename else reason


def _report(error: Exception) -> str:
    """Kind and place of a fault, without its text: that could hold what is in an image."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return (
        f"something went wrong inside MediSee {medisee.__version__} "
        f"({type(error).__name__} at {place}). Please report it; "
        "MEDISEE_DEBUG=1 shows the traceback."
    )
