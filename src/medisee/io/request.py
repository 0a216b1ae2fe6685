"""What the caller asked of a reader, and the limits that every reader holds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields

from medisee.errors import InputError
from medisee.io.display import Window

__all__ = ["MAX_PIXELS", "TOO_LARGE", "Plane", "ReadRequest"]

MAX_PIXELS = 100_000_000
"""Largest image that is opened, in pixels: a guard against decompression bombs."""

TOO_LARGE = (
    f"more than the {MAX_PIXELS // 1_000_000} million pixels that MediSee opens; "
    "crop or shrink the image first"
)

Plane = str
"""`axial`, `coronal` or `sagittal`."""


@dataclass(frozen=True)
class ReadRequest:
    """Name of the source for messages, and the choices that only some formats know."""

    name: str
    slice: int | None = None
    plane: Plane | None = None
    frame: int | None = None
    window: Window | None = None

    def allow_only(self, allowed: Collection[str], kind: str) -> None:
        """Refuse a choice that this kind of file has no room for, rather than ignore it."""
        for choice in (field.name for field in fields(self)):
            if choice != "name" and choice not in allowed and getattr(self, choice) is not None:
                raise InputError(f"{self.name}: {kind} has no {choice} to choose; leave it out")

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image without pixels or with more than `MAX_PIXELS`."""
        if height < 1 or width < 1:
            raise InputError(f"{self.name}: the image is empty ({width} x {height} pixels)")
        if height * width > MAX_PIXELS:
            raise InputError(f"{self.name}: {width} x {height}: {TOO_LARGE}")

    def pick(self, choice: str, count: int, default: int) -> int:
        """Index into `count` slices or frames: the caller's choice, else `default`."""
        index = getattr(self, choice)
        if index is None:
            return default
        if not 0 <= index < count:
            raise InputError(f"{self.name}: {choice} {index} is not there; 0 to {count - 1} are")
        return int(index)
