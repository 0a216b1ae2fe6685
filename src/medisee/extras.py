"""Optional packages: where one is missing, name the feature and the extra that brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from medisee.errors import MissingExtraError

__all__ = ["needs_extra"]


@contextmanager
def needs_extra(feature: str, extra: str) -> Iterator[None]:
    """Imports inside may fail for want of an `extra`; the user then reads which one to install.

    with needs_extra("training", "torch"):
        import torch
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "medisee").split(".")[0] == "medisee":
            raise  # a fault of our own, not a missing package
        raise MissingExtraError(feature, extra) from error
