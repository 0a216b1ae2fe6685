"""Location clues that are true of the masks.

"Left" and "right" alone are the patient's in this project, so a clue about the picture says that
it is about the picture, and a clue about the patient is given only where the plane fixes which
side is which: axial (anterior up, the patient's right on the image's left) and coronal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Clue", "Shape", "find_clues"]

_SIDED_PLANES = ("axial", "coronal")
_UNSIDED_BODY_PARTS = ("brain (hippocampus region crop)",)


@dataclass(frozen=True)
class Shape:
    """What the clues need of a mask: box, area and centre in pixels, and the image's size."""

    box: tuple[float, float, float, float]
    area: int
    centre: tuple[float, float]
    width: int
    height: int

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Shape | None:
        """The shape of a (H, W) mask; None when it is empty."""
        rows, columns = np.nonzero(mask)
        if rows.size == 0:
            return None
        height, width = mask.shape
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        return cls(
            box=tuple(map(float, box)),  # type: ignore[arg-type]
            area=int(rows.size),
            centre=(float(columns.mean()) + 0.5, float(rows.mean()) + 0.5),
            width=width,
            height=height,
        )

    @property
    def off_centre(self) -> float:
        """Distance of the centre from the image's, in half diagonals."""
        dx, dy = self.centre[0] - self.width / 2, self.centre[1] - self.height / 2
        return float(np.hypot(dx, dy) / np.hypot(self.width / 2, self.height / 2))


@dataclass(frozen=True)
class Clue:
    """A phrase that fits behind a description; `place`: also alone behind "it lies"."""

    text: str
    place: bool


def find_clues(
    label: str, shapes: Mapping[str, Shape], plane: str, body_part: str
) -> Iterator[Clue]:
    """Every clue that holds for `label`; `{m}` stands for the image, `{<label>}` for a name."""
    shape = shapes[label]
    for text in _in_image(shape):
        yield Clue(text, place=True)
    others = {name: other for name, other in shapes.items() if name != label}
    for name, other in others.items():
        yield from _beside(shape, other, "{" + name + "}", _directions(plane, body_part))
        yield from _compared(shape, other, "{" + name + "}")
    yield from _ranked(shape, others)


def _in_image(shape: Shape) -> Iterator[str]:
    across = _half(shape.box[0], shape.box[2], shape.width, ("left", "right"))
    down = _half(shape.box[1], shape.box[3], shape.height, ("upper", "lower"))
    if across and down:
        yield f"in the {down} {across} of the {{m}}"
        yield f"in the {down} {across} part of this {{m}}"
        corner = {"upper": "top", "lower": "bottom"}[down]
        yield f"at the {corner} {across} of the {{m}}"
    elif down:
        yield f"in the {down} half of the {{m}}"
    elif across:
        yield f"in the {across} half of the {{m}}, as seen on the screen"
    if shape.off_centre < 0.12 and _box_area(shape) < 0.4 * shape.width * shape.height:
        yield "near the middle of the {m}"
        yield "close to the centre of the {m}"


def _half(low: float, high: float, size: int, names: tuple[str, str]) -> str | None:
    """The half that holds at least 85 % of the extent, with its middle clearly inside."""
    first = max(0.0, min(high, size / 2) - low) / (high - low)
    middle = (low + high) / 2 / size
    if first >= 0.85 and middle < 0.42:
        return names[0]
    if first <= 0.15 and middle > 0.58:
        return names[1]
    return None


def _box_area(shape: Shape) -> float:
    return (shape.box[2] - shape.box[0]) * (shape.box[3] - shape.box[1])


Directions = Sequence[tuple[int, bool, str]]  # axis (0 = x), towards low coordinates, phrase


def _directions(plane: str, body_part: str) -> Directions:
    found = [
        (1, True, "above {} in the {{m}}"),
        (1, False, "below {} in the {{m}}"),
        (1, True, "higher in the picture than {}"),
        (1, False, "lower in the picture than {}"),
    ]
    if plane in _SIDED_PLANES and body_part not in _UNSIDED_BODY_PARTS:
        found.append((0, True, "on the patient's right of {}"))
        found.append((0, False, "on the patient's left of {}"))
    if plane == "axial":
        found.append((1, True, "in front of {}"))
        found.append((1, False, "behind {}"))
    return found


def _beside(shape: Shape, other: Shape, name: str, directions: Directions) -> Iterator[Clue]:
    for axis, towards_low, phrase in directions:
        near, far = (shape, other) if towards_low else (other, shape)
        # Apart on this axis (a tenth of the smaller may overlap), and overlapping on the other
        # one: then no two people would disagree about "above".
        slack = 0.1 * min(_extent(shape, axis), _extent(other, axis))
        apart = near.box[axis + 2] <= far.box[axis] + slack
        if apart and _overlap(shape, other, 1 - axis) > 0:
            yield Clue(phrase.format(name), place=True)


def _extent(shape: Shape, axis: int) -> float:
    return shape.box[axis + 2] - shape.box[axis]


def _overlap(shape: Shape, other: Shape, axis: int) -> float:
    low = max(shape.box[axis], other.box[axis])
    return min(shape.box[axis + 2], other.box[axis + 2]) - low


def _compared(shape: Shape, other: Shape, name: str) -> Iterator[Clue]:
    if shape.area >= 2 * other.area:
        yield Clue(f"clearly larger than {name} here", place=False)
    if other.area >= 2 * shape.area:
        yield Clue(f"clearly smaller than {name} here", place=False)
    if other.off_centre - shape.off_centre > 0.15:
        yield Clue(f"closer to the centre of the {{m}} than {name}", place=True)
    if shape.off_centre - other.off_centre > 0.15:
        yield Clue(f"further from the centre of the {{m}} than {name}", place=True)


def _ranked(shape: Shape, others: Mapping[str, Shape]) -> Iterator[Clue]:
    if len(others) < 2:
        return
    first, second = ("{" + name + "}" for name in list(others)[:2])
    areas = [other.area for other in list(others.values())[:2]]
    if shape.area >= 1.3 * max(areas):
        yield Clue(f"larger than both {first} and {second} here", place=False)
    if 1.3 * shape.area <= min(areas):
        yield Clue(f"smaller than both {first} and {second} here", place=False)
