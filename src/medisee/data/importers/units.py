"""What every format gives to the writer: units of work that yield samples and flaws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medisee.data.importers.classes import ClassTable, load_classes
from medisee.data.importers.options import ImportOptions
from medisee.errors import DataError, MediSeeError

__all__ = ["Context", "Flaw", "LabelledMask", "Sample", "Unit", "Unread", "damaged"]


@dataclass(frozen=True, eq=False)
class LabelledMask:
    """One instance: curated label, bool (H, W) on the grid of its image, file it came from."""

    label: str
    mask: NDArray[np.bool_]
    file: str


@dataclass(frozen=True, eq=False)
class Sample:
    """One image, (H, W) or (H, W, 3) uint8 as people see it, with its masks; "" is not known.

    name: unique within the source; it becomes the last part of the file names.
    left_out: why targets of the source are not among the masks, one reason each.
    """

    name: str
    image: NDArray[np.uint8]
    masks: tuple[LabelledMask, ...]
    modality: str = ""
    body_part: str = ""
    plane: str = ""
    patient: str = ""
    split: str = ""
    licence: str = ""
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Unread:
    """An image whose classes are known before it is opened: the rule may not even want it."""

    name: str
    labels: tuple[str, ...]
    load: Callable[[], Iterator[Sample | Flaw]]


@dataclass(frozen=True)
class Flaw:
    """An image or a mask of the source that cannot be used; `file` as the source calls it."""

    file: str
    reason: str
    what: Literal["image", "mask"] = "mask"


@dataclass(frozen=True)
class Unit:
    """What is read, written and remembered together: an image, or a volume with its slices.

    key: unique within the source. files: those it depends on; a change makes it anew.
    read: samples, or how to get them, and flaws; what it raises for the user is a flaw of the
        whole unit.
    """

    key: str
    files: Iterable[Path]
    read: Callable[[], Iterator[Sample | Unread | Flaw]]


@dataclass(frozen=True)
class Context:
    """What the formats need to know: where the source is, the options, the class table."""

    source: Path
    options: ImportOptions
    table: ClassTable = field(default_factory=load_classes)

    def label(self, raw: str, about: str = "", *also: str) -> str | None:
        """Curated label of a class of the source; None where the user leaves the class out.

        The user's mapping is asked for `raw` and for what `also` may stand for it (its id).
        """
        for key in (raw, *also):
            if key in self.options.classes:
                chosen = self.options.classes[key]
                return None if chosen is None else self.table.label(chosen, about)
        return self.table.label(raw, about)

    def relative(self, path: Path) -> str:
        """How messages and keys call a file: its path below the source."""
        root = self.source if self.source.is_dir() else self.source.parent
        try:
            return path.relative_to(root).as_posix()
        except ValueError:
            return path.name


@contextmanager
def damaged(file: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into one line that names it."""
    try:
        yield
    except MediSeeError:
        raise
    except Exception as error:
        raise DataError(f"{file}: is damaged or incomplete") from error
