"""Patient directions of image axes, and turning a slice the way radiologists look at it.

World coordinates here are RAS+ as in NIfTI: x grows towards the patient's right, y towards the
front (anterior), z towards the head. DICOM's LPS+ differs in the signs of x and y.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medisee.structures import Direction, Orientation

__all__ = ["RADIOLOGICAL", "Turn", "directions_of", "from_dicom_cosines", "to_display"]

RADIOLOGICAL: dict[str, Orientation] = {
    "axial": Orientation(left="R", top="A"),
    "coronal": Orientation(left="R", top="H"),
    "sagittal": Orientation(left="A", top="H"),
}
"""How slices of each plane are shown: the patient's right on the image's left, head or front up."""

_LETTERS: tuple[tuple[Direction, Direction], ...] = (("R", "L"), ("A", "P"), ("H", "F"))
_OPPOSITE = {a: b for pair in _LETTERS for a, b in (pair, pair[::-1])}


def directions_of(axes: ArrayLike) -> tuple[Direction, ...] | None:
    """Nearest patient direction in which each column of `axes` (3, n) grows; all on other axes.

    Columns are RAS+ vectors of any length. Of all ways to give the n columns different patient
    axes, the one with the largest sum of cosines is taken, so that oblique volumes get a
    permutation too. None when a column is no direction (zero or not finite).
    """
    columns = np.asarray(axes, dtype=np.float64)
    lengths = np.linalg.norm(columns, axis=0)
    if not np.all(np.isfinite(lengths)) or np.any(lengths < 1e-9):
        return None
    cosines = columns / lengths
    n = cosines.shape[1]
    chosen = max(
        permutations(range(3), n), key=lambda p: sum(abs(cosines[p[i], i]) for i in range(n))
    )
    return tuple(_LETTERS[axis][int(cosines[axis, i] < 0)] for i, axis in enumerate(chosen))


def from_dicom_cosines(cosines: ArrayLike) -> Orientation | None:
    """Orientation of ImageOrientationPatient (6,): LPS+ direction of the rows, then the columns.

    None when the two are not a right angle of unit vectors, which no valid file states.
    """
    vectors = np.asarray(cosines, dtype=np.float64).reshape(2, 3)
    if not np.allclose(vectors @ vectors.T, np.eye(2), atol=0.02):
        return None
    directions = directions_of((vectors * [-1, -1, 1]).T)
    if directions is None:
        return None
    to_the_right, downwards = directions
    return Orientation(left=_OPPOSITE[to_the_right], top=_OPPOSITE[downwards])


@dataclass(frozen=True)
class Turn:
    """How a slice as stored becomes one as shown: its axes are swapped, then mirrored."""

    swap: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def towards(cls, wanted: Orientation, downwards: Direction, to_the_right: Direction) -> Turn:
        """For a slice whose rows and columns grow in the given directions, to show `wanted`.

        Both orientations must lie in one plane.
        """
        swap = downwards not in (wanted.top, wanted.bottom)
        if swap:
            downwards, to_the_right = to_the_right, downwards
        return cls(swap, downwards == wanted.top, to_the_right == wanted.left)

    def show(self, stored: NDArray[Any]) -> NDArray[Any]:
        """The slice (H, W, ...) as shown."""
        return self._mirror(stored.swapaxes(0, 1) if self.swap else stored)

    def store(self, shown: NDArray[Any]) -> NDArray[Any]:
        """What `show` would make `shown` of."""
        mirrored = self._mirror(shown)
        return mirrored.swapaxes(0, 1) if self.swap else mirrored

    def _mirror(self, image: NDArray[Any]) -> NDArray[Any]:
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def to_display(
    image: NDArray[Any], downwards: Direction, to_the_right: Direction, wanted: Orientation
) -> NDArray[Any]:
    """Turn and mirror a slice (H, W, ...) whose rows and columns grow in the given directions.

    The result's left and top edges show `wanted`; both orientations must lie in one plane.
    """
    return Turn.towards(wanted, downwards, to_the_right).show(image)
