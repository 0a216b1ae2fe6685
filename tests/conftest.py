"""Fixtures for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from medisee.testing import FakeModel

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the shared test data: MEDISEE_SHARED, else `shared` next to the repository."""
    folder = Path(os.environ.get("MEDISEE_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_dir():
        pytest.skip("no shared test data: set MEDISEE_SHARED or put it in ../shared")
    return folder


class Run(NamedTuple):
    """What a command left behind: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Run]:
    """`run("ask", ...)` runs the command line in this process, in an empty folder."""
    from medisee.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("MEDISEE_DEBUG", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as main() would, but put back
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")

    def run_command(*argv: object) -> Run:
        with pytest.raises(SystemExit) as leaving:
            main([str(word) for word in argv])
        code = leaving.value.code
        return Run(code if isinstance(code, int) else 1, *capsys.readouterr())

    return run_command


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """A model without weights in the place of the real one, whatever name is loaded."""
    model = FakeModel()
    predictor = ModuleType("medisee.predictor")
    predictor.load = (  # type: ignore[attr-defined]
        lambda name="nano", device=None, runtime=None, precision=None: model
    )
    monkeypatch.setitem(sys.modules, "medisee.predictor", predictor)
    return model


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A small grey PNG image."""
    path = tmp_path / "scan.png"
    Image.fromarray(np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)).save(path)
    return path
