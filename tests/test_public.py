"""The public names, and that they are really there."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import medisee

PUBLIC = ["Answer", "Finding", "__version__", "load", "read_image"]


def test_public_names_are_these() -> None:
    assert sorted(medisee.__all__) == PUBLIC
    assert dir(medisee) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_there(name: str) -> None:
    assert getattr(medisee, name) is not None


def test_lazy_names_and_typed_names_agree() -> None:
    tree = ast.parse(Path(medisee.__file__).read_text(encoding="utf-8"))
    guard = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module
        for node in guard.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == medisee._HOMES


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        medisee.nonsense  # noqa: B018


def test_version_is_the_installed_one() -> None:
    try:
        installed = metadata.version("medisee")
    except metadata.PackageNotFoundError:
        pytest.skip("medisee runs from its source folder and is not installed")
    assert medisee.__version__ == installed


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "medisee", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"medisee {medisee.__version__}"
