"""The memory of an import: one line for each unit that is done, so that a second run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from medisee.data.importers.units import Unit
from medisee.errors import DataError

__all__ = ["Journal", "read_lines", "stamp_of", "write_whole"]

Line = dict[str, Any]
SCHEMA = "medisee.import/1"


class Journal:
    """Appended to after each unit; a line that a kill cut off is forgotten, and made anew."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open or begin `path`; DataError when it was begun with other settings."""
        self.path = path
        self._head = {"schema": SCHEMA, "settings": settings}
        if path.is_file():
            self._check()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._rewrite(lambda line: True)
        self._stamps = {line["unit"]: line["stamp"] for line in self}

    def __iter__(self) -> Iterator[Line]:
        """The lines of the units, in the order in which they were done."""
        return read_lines(self.path)

    def done(self, unit: Unit) -> bool:
        """Whether the unit was imported as its files are now."""
        return unit.key in self._stamps and self._stamps[unit.key] == stamp_of(unit)

    def add(self, line: Line) -> None:
        """Remember a unit; on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()
            os.fsync(out.fileno())
        self._stamps[line["unit"]] = line["stamp"]

    def forget(self, keys: set[str]) -> list[Line]:
        """Take out the lines of these units and give them, for their files to be removed."""
        known = keys & self._stamps.keys()
        if not known:
            return []
        gone = [line for line in self if line["unit"] in known]
        self._rewrite(lambda line: line["unit"] not in known)
        for key in known:
            del self._stamps[key]
        return gone

    def _check(self) -> None:
        data = self.path.read_bytes()
        if not data.endswith(b"\n"):  # a kill in the middle of a line
            whole = data[: data.rfind(b"\n") + 1]
            os.truncate(self.path, len(whole))
        with self.path.open(encoding="utf-8") as lines:
            first = lines.readline()
        if not first:
            self._rewrite(lambda line: True)
        elif json.loads(first) != self._head:
            raise DataError(
                f"{self.path.parent.parent.name}: this source was imported there with other "
                "options; use the same ones, another --name or another folder"
            )

    def _rewrite(self, keep: Callable[[Line], bool]) -> None:
        kept = [line for line in read_lines(self.path) if keep(line)] if self.path.is_file() else []
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in [self._head, *kept])
        write_whole(self.path, lines)


def read_lines(path: Path) -> Iterator[Line]:
    """Streams the units' lines of a journal."""
    with path.open(encoding="utf-8") as lines:
        next(lines, None)
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def stamp_of(unit: Unit) -> str:
    """Changes when one of the unit's files does (size or time of writing)."""
    digest = sha256()
    for path in unit.files:
        with suppress(OSError):  # a missing file is a state of its own
            found = path.stat()
            digest.update(f"{path.name} {found.st_size} {found.st_mtime_ns};".encode())
    return digest.hexdigest()[:16]


def write_whole(path: Path, pieces: Iterator[str]) -> None:
    """Write a text file that appears, or is replaced, only when it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as out:
            out.writelines(pieces)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
