"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the shared test data: MEDISEE_SHARED, else `shared` next to the repository."""
    folder = Path(os.environ.get("MEDISEE_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_dir():
        pytest.skip("no shared test data: set MEDISEE_SHARED or put it in ../shared")
    return folder
