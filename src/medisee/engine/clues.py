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

__all__ = ["Clue", "Shape", "find_clues", "is_sided"]

_SIDED_PLANES = ("axial", "coronal")
_UNSIDED_BODY_PARTS = ("brain (hippocampus region crop)",)
_SHARES = (
    # From, to: how much of the image the mask covers.
    (0.52, 1.0, "filling more than half of the {m}"),
    (0.27, 0.5, "covering more than a quarter of the {m}"),
    (0.11, 0.25, "covering more than a tenth of the {m}"),
    (0.0, 0.009, "covering less than a hundredth of the {m}"),
)


@dataclass(frozen=True)
class Shape:
    """What the clues need of a mask, in pixels: box, area, centre, median, and the image's size.

    The centre is the mean of the mask's pixels. The median is far from it in shapes such as a
    horseshoe, of which nobody would say that it lies where its centre is.
    """

    box: tuple[float, float, float, float]
    area: int
    centre: tuple[float, float]
    median: tuple[float, float]
    width: int
    height: int

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Shape | None:
        """The shape of a (H, W) mask; None when it is empty."""
        columns, rows = mask.sum(axis=0), mask.sum(axis=1)
        area = int(rows.sum())
        if not area:
            return None
        (x1, x2), (y1, y2) = (np.flatnonzero(counts)[[0, -1]] for counts in (columns, rows))
        height, width = mask.shape
        return cls(
            box=(float(x1), float(y1), float(x2 + 1), float(y2 + 1)),
            area=area,
            centre=(
                float(columns @ np.arange(width)) / area + 0.5,
                float(rows @ np.arange(height)) / area + 0.5,
            ),
            median=(_median(columns), _median(rows)),
            width=width,
            height=height,
        )

    @property
    def off_centre(self) -> float:
        """Distance of the centre from the image's, in half diagonals."""
        return self._distance(self.centre)

    @property
    def median_off_centre(self) -> float:
        """The same of the median."""
        return self._distance(self.median)

    def _distance(self, point: tuple[float, float]) -> float:
        dx, dy = point[0] - self.width / 2, point[1] - self.height / 2
        return float(np.hypot(dx, dy) / np.hypot(self.width / 2, self.height / 2))

    @property
    def share(self) -> float:
        """The part of the image that the mask covers."""
        return self.area / (self.width * self.height)


def _median(counts: NDArray[np.int_]) -> float:
    sums = np.cumsum(counts)
    return float(np.searchsorted(sums, sums[-1] / 2)) + 0.5


@dataclass(frozen=True)
class Clue:
    """A phrase that fits behind a description; `place`: also alone behind "it lies"."""

    text: str
    place: bool


def is_sided(plane: str, body_part: str) -> bool:
    """Whether the image's left and right tell the patient's."""
    return plane in _SIDED_PLANES and body_part not in _UNSIDED_BODY_PARTS


def find_clues(
    label: str, shapes: Mapping[str, Shape], plane: str, body_part: str
) -> Iterator[Clue]:
    """Every clue that holds for `label`; `{m}` stands for the image, `{<label>}` for a name."""
    shape = shapes[label]
    for text in _in_image(shape):
        yield Clue(text, place=True)
    for text in _at_edges(shape):
        yield Clue(text, place=False)
    for low, high, text in _SHARES:
        if low <= shape.share < high:
            yield Clue(text, place=False)
    others = {name: other for name, other in shapes.items() if name != label}
    for name, other in others.items():
        yield from _beside(shape, other, "{" + name + "}", _directions(plane, body_part))
        yield from _compared(shape, other, "{" + name + "}")
    yield from _between(shape, others)
    yield from _ranked(shape, others)


def _in_image(shape: Shape) -> Iterator[str]:
    across = _half(shape.box[0], shape.box[2], shape.width, ("left", "right"))
    down = _half(shape.box[1], shape.box[3], shape.height, ("upper", "lower"))
    if across and down:
        corner = {"upper": "top", "lower": "bottom"}[down]
        yield f"in the {down} {across} of the {{m}}"
        yield f"in the {down} {across} part of this {{m}}"
        yield f"at the {corner} {across} of the {{m}}"
        yield f"in the {corner} {across} quarter of the {{m}}"
    if down:
        yield f"in the {down} half of the {{m}}"
    if across:
        yield f"in the {across} half of the {{m}}, as seen on the screen"
        yield f"on the {across} side of the screen"
    yield from _in_middle(shape)
    yield from _in_thirds(shape)


def _in_middle(shape: Shape) -> Iterator[str]:
    off = max(shape.off_centre, shape.median_off_centre)
    if off < 0.12 and _box_area(shape) < 0.4 * shape.width * shape.height:
        yield "near the middle of the {m}"
        yield "close to the centre of the {m}"
    low, high = shape.box[1] / shape.height, shape.box[3] / shape.height
    middle = shape.median[1] / shape.height
    if abs((low + high) / 2 - 0.5) < 0.06 and abs(middle - 0.5) < 0.1 and high - low < 0.4:
        yield "about halfway down the {m}"
        yield "at about mid-height in the {m}"


def _in_thirds(shape: Shape) -> Iterator[str]:
    if shape.box[3] <= 0.35 * shape.height:
        yield "in the top third of the {m}"
    if shape.box[1] >= 0.65 * shape.height:
        yield "in the bottom third of the {m}"


def _at_edges(shape: Shape) -> Iterator[str]:
    margins = (
        (shape.box[1] / shape.height, "top"),
        (1 - shape.box[3] / shape.height, "bottom"),
        (shape.box[0] / shape.width, "left"),
        (1 - shape.box[2] / shape.width, "right"),
    )
    reached = [edge for margin, edge in margins if margin <= 0.01]
    if len(reached) < 3:  # what fills the image reaches its edges, which tells nothing
        for edge in reached:
            yield f"reaching the {edge} edge of the {{m}}"


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


# Axis (0 = x), towards low coordinates, phrase, whether it tells a place by itself.
Directions = Sequence[tuple[int, bool, str, bool]]


def _directions(plane: str, body_part: str) -> Directions:
    found = [
        (1, True, "above {} in the {{m}}", True),
        (1, False, "below {} in the {{m}}", True),
        (1, True, "higher in the picture than {}", False),
        (1, False, "lower in the picture than {}", False),
    ]
    if is_sided(plane, body_part):
        found.append((0, True, "on the patient's right of {}", True))
        found.append((0, False, "on the patient's left of {}", True))
    if plane == "axial":
        found.append((1, True, "in front of {}", True))
        found.append((1, False, "behind {}", True))
    return found


def _beside(shape: Shape, other: Shape, name: str, directions: Directions) -> Iterator[Clue]:
    for axis, towards_low, phrase, place in directions:
        near, far = (shape, other) if towards_low else (other, shape)
        if _precedes(near, far, axis):
            yield Clue(phrase.format(name), place)


def _precedes(near: Shape, far: Shape, axis: int) -> bool:
    """Whether nobody would doubt that `near` comes before `far` on this axis.

    They are apart on it (a tenth of the smaller may overlap), and overlap on the other one.
    """
    slack = 0.1 * min(_extent(near, axis), _extent(far, axis))
    return near.box[axis + 2] <= far.box[axis] + slack and _overlap(near, far, 1 - axis) > 0


def _extent(shape: Shape, axis: int) -> float:
    return shape.box[axis + 2] - shape.box[axis]


def _overlap(shape: Shape, other: Shape, axis: int) -> float:
    low = max(shape.box[axis], other.box[axis])
    return min(shape.box[axis + 2], other.box[axis + 2]) - low


def _compared(shape: Shape, other: Shape, name: str) -> Iterator[Clue]:
    if shape.area >= 2 * other.area:
        yield Clue(f"clearly larger than {name} here", place=False)
        yield Clue(f"at least twice as large as {name} here", place=False)
    if other.area >= 2 * shape.area:
        yield Clue(f"clearly smaller than {name} here", place=False)
        yield Clue(f"less than half as large as {name} here", place=False)
    nearer = min(
        other.off_centre - shape.off_centre, other.median_off_centre - shape.median_off_centre
    )
    further = min(
        shape.off_centre - other.off_centre, shape.median_off_centre - other.median_off_centre
    )
    if nearer > 0.1:
        yield Clue(f"closer to the centre of the {{m}} than {name}", place=False)
    if further > 0.1:
        yield Clue(f"further from the centre of the {{m}} than {name}", place=False)


def _between(shape: Shape, others: Mapping[str, Shape]) -> Iterator[Clue]:
    for axis in (0, 1):
        before = [name for name, other in others.items() if _precedes(other, shape, axis)]
        after = [name for name, other in others.items() if _precedes(shape, other, axis)]
        if before and after:  # the nearest of each tell most
            first = max(before, key=lambda name: others[name].box[axis + 2])
            second = min(after, key=lambda name: others[name].box[axis])
            yield Clue(f"between {{{first}}} and {{{second}}} in the {{m}}", place=True)


def _ranked(shape: Shape, others: Mapping[str, Shape]) -> Iterator[Clue]:
    if len(others) < 2:
        return
    first, second = ("{" + name + "}" for name in list(others)[:2])
    areas = [other.area for other in list(others.values())[:2]]
    if shape.area >= 1.3 * max(areas):
        yield Clue(f"larger than both {first} and {second} here", place=False)
    if 1.3 * shape.area <= min(areas):
        yield Clue(f"smaller than both {first} and {second} here", place=False)
