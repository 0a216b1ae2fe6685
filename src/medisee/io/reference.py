"""Where the pixels of an image lie in what they were read from, so that results fit back there."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from medisee.errors import InputError
from medisee.io.orientation import Turn

__all__ = ["SourceFile", "SourceReference"]


@dataclass(frozen=True)
class SourceFile:
    """A file, the bytes of one, or a member of a ZIP archive, which is never unpacked to disk."""

    place: Path | bytes = field(repr=False)
    member: str | None = field(default=None, repr=False)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The content, to read and to seek in.

        Raises InputError when the file cannot be opened, whatever has become of it.
        """
        try:
            stream = io.BytesIO(self.place) if isinstance(self.place, bytes) else self._from_disk()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a file name"
            raise InputError(f"{str(self.place)[:200]}: cannot be opened ({reason})") from error
        with stream:
            if self.member is None:
                yield stream
            else:
                with zipfile.ZipFile(stream) as archive:
                    yield io.BytesIO(archive.read(self.member))

    def _from_disk(self) -> BinaryIO:
        path = Path(self.place)  # type: ignore[arg-type]
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is not a regular file")
        return path.open("rb")


@dataclass(frozen=True, eq=False)
class SourceReference:
    """Which slice of which stored array an image shows.

    It names files and array axes only. What results need of patient and study is read from the
    files again when a result is written, and kept nowhere.

    kind: how the source is stored; files: one for each slice of a series, else a single one.
    shape: (I, J, K) of the stored array, whose slices are stacked along `axis`; for DICOM that
    is (rows, columns, slices). index: the slice shown; turn: how it was turned to be shown.
    frames: for DICOM, the frame in its file of each slice; uids: the SOP Instance UIDs of files.
    """

    kind: Literal["dicom", "nifti"]
    files: tuple[SourceFile, ...] = field(repr=False)
    shape: tuple[int, int, int]
    axis: int
    index: int
    turn: Turn = Turn()  # noqa: RUF009 - frozen
    frames: tuple[int, ...] = ()
    uids: tuple[str, ...] = field(default=(), repr=False)

    def volume(self, masks: Mapping[int, NDArray[Any]]) -> NDArray[np.bool_]:
        """(I, J, K) bool in the order of the stored array, from masks (H, W) by slice as shown."""
        volume = np.zeros(self.shape, bool)
        for index, mask in masks.items():
            volume[(slice(None),) * self.axis + (index,)] = self.turn.store(mask)
        return volume
