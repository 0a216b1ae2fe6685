"""The command line as a whole: help, exit codes, one-line errors."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import medisee
from medisee import cli
from medisee.errors import InputError


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_an_explanation(run, command):
    done = run(*command.split(), "--help")
    assert done.code == 0
    module, function = cli.COMMANDS[command].split(":")
    first_line = getattr(import_module(module), function).__doc__.splitlines()[0]
    assert first_line in done.out


def test_help_lists_every_command(run):
    done = run("--help")
    assert done.code == 0
    assert all(f" {command.split()[0]} " in done.out for command in cli.COMMANDS)
    for group in cli.GROUPS:
        shown = run(group, "--help").out
        within = [name.split()[1] for name in cli.COMMANDS if name.startswith(f"{group} ")]
        assert within
        assert all(f" {name} " in shown for name in within)


def test_no_argument_shows_help(run):
    assert run() == run("--help")


@pytest.mark.parametrize("argv", [["--help"], ["ask", "--help"], ["train", "--help"]])
def test_help_imports_nothing_heavy(argv):
    code = (
        "import sys, contextlib\n"
        "from medisee.cli import main\n"
        f"with contextlib.suppress(SystemExit): main({argv})\n"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'numpy', 'PIL', 'nibabel', 'pydicom'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("HEAVY []")


def test_version(run):
    assert run("--version").out == f"medisee {medisee.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["aks"], "No such command 'aks'. Did you mean 'ask'? Try: medisee --help"),
        (["--nonsense"], "No such option: --nonsense. Try: medisee --help"),
        (["ask"], "Missing argument 'IMAGE'. Try: medisee ask --help"),
        (["ask", "scan.png"], "Missing argument 'QUESTION'. Try: medisee ask --help"),
        (["ask", "a", "b", "--frame", "x"], "Invalid value for '--frame'"),
    ],
)
def test_usage_errors_are_one_line_and_exit_with_2(run, argv, line):
    done = run(*argv)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"medisee: {line}")
    assert done.err.count("\n") == 1


def raiser(error):
    def command():
        raise error

    return command


@pytest.fixture
def failing(monkeypatch):
    """Replaces a command by one that raises the given error."""

    def replace(error):
        import medisee.commands.models as module

        monkeypatch.setattr(module, "models", raiser(error))

    return replace


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("scan.png: is empty"), 2, "medisee: scan.png: is empty\n"),
        (PermissionError(13, "Permission denied", "out"), 2, "medisee: Permission denied: out\n"),
        (OSError(28, "No space left on device"), 2, "medisee: No space left on device\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_are_one_line_and_an_exit_code(run, failing, error, code, line):
    failing(error)
    done = run("models")
    assert (done.code, done.err, done.out) == (code, line, "")


def test_a_fault_of_our_own_asks_for_a_report_and_hides_its_text(run, failing):
    failing(ValueError("patient Jane Doe"))
    done = run("models")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "ValueError at test_cli.py:" in done.err
    assert "report" in done.err
    assert "Jane" not in done.err


def test_debug_shows_the_traceback(run, failing, monkeypatch):
    failing(ValueError("inside"))
    monkeypatch.setenv("MEDISEE_DEBUG", "1")
    assert "Traceback" in run("models").err


def test_a_file_name_cannot_steer_the_terminal(run, fake):
    done = run("ask", "no\x1b[31mfile.png", "Where is the liver?")
    assert done.code == 2
    assert "\x1b" not in done.err
