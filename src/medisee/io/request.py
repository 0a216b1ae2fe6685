"""What the caller asked of a reader, and the limits that every reader holds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from medisee.errors import InputError
from medisee.io.display import Window
from medisee.io.hiding import Box
from medisee.io.reference import SourceFile

__all__ = ["MAX_PIXELS", "Limits", "Plane", "ReadRequest"]

MAX_PIXELS = 100_000_000
"""Largest image that is opened, in pixels: a guard against decompression bombs."""

_CHOICES = ("slice", "plane", "frame", "window", "series")

Plane = str
"""`axial`, `coronal` or `sagittal`."""


@dataclass(frozen=True)
class Limits:
    """The most that is opened: pixels of an image, frames of a file, bytes that it unpacks to."""

    pixels: int = MAX_PIXELS
    frames: int = 1_000_000
    unpacked_bytes: int = 4 << 30

    @property
    def too_large(self) -> str:
        """What is said of an image with too many pixels."""
        return (
            f"more than the {self.pixels // 1_000_000} million pixels that MediSee opens; "
            "crop or shrink the image first"
        )


@dataclass(frozen=True)
class ReadRequest:
    """Name of the source for messages, the choices that only some formats know, and the limits."""

    name: str
    slice: int | None = None
    plane: Plane | None = None
    frame: int | None = None
    window: Window | None = None
    limits: Limits = Limits()
    series: int | None = None
    hide: tuple[Box, ...] = ()
    hide_annotations: bool = False
    file: SourceFile | None = None
    """Where the source can be opened again; None for pictures in memory and arrays."""

    def allow_only(self, allowed: Collection[str], kind: str) -> None:
        """Refuse a choice that this kind of file has no room for, rather than ignore it."""
        for choice in _CHOICES:
            if choice not in allowed and getattr(self, choice) is not None:
                raise InputError(f"{self.name}: {kind} has no {choice} to choose; leave it out")

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image without pixels or with more than the limit."""
        if height < 1 or width < 1:
            raise InputError(f"{self.name}: the image is empty ({width} x {height} pixels)")
        if height * width > self.limits.pixels:
            raise InputError(f"{self.name}: {width} x {height}: {self.limits.too_large}")

    def check_frames(self, count: int) -> None:
        """Refuse a file with more frames than the limit."""
        if count > self.limits.frames:
            raise InputError(f"{self.name}: has more than {self.limits.frames:,} frames")

    def pick(self, choice: str, count: int, default: int) -> int:
        """Index into `count` slices or frames: the caller's choice, else `default`."""
        index = getattr(self, choice)
        if index is None:
            return default
        if not 0 <= index < count:
            raise InputError(f"{self.name}: {choice} {index} is not there; 0 to {count - 1} are")
        return int(index)
