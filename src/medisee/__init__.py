"""MediSee: ask a medical image a question; get a mask, a box and an explanation.

    import medisee

    session = medisee.load("nano").open("scan.dcm")
    answer = session.ask("Which organ makes bile?")
    answer.save("out")

Importing this package is cheap: the public names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medisee.io import read_image as read_image
    from medisee.predictor import load as load
    from medisee.structures import Answer as Answer
    from medisee.structures import Finding as Finding

__version__ = "0.1.0"

_HOMES = {
    "Answer": "medisee.structures",
    "Finding": "medisee.structures",
    "load": "medisee.predictor",
    "read_image": "medisee.io",
}

__all__ = ["Answer", "Finding", "__version__", "load", "read_image"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medisee' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
