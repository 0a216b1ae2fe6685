"""What a question says about places and sizes, read from its words and tested on the masks.

The writer's clues come from boxes with margins (`clues`); the tests here are plainer, on centres
and areas, and read the text alone: they hold for whoever wrote it. "Left" and "right" of the
picture are the picture's, those of the patient the patient's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from medisee.data.sa_med2d import ImageRecord
from medisee.engine import language
from medisee.engine.clues import Shape, is_sided
from medisee.entities import Entity

__all__ = ["SHOWN", "Claim", "ClaimReader"]

SHOWN = (
    r"(?:the|this|my) (?:[\w/-]+ ){0,2}?(?:scan|image|slice|picture|ct|mri|ultrasound|sonogram"
    r"|x-ray|radiograph|film|mammogram|micrograph|slide|photo|photograph|frame|angiogram|screen)\b"
)
"""Pattern of words for the image in hand."""

_SHARE = {"half": 0.5, "a quarter": 0.25, "a tenth": 0.1, "a hundredth": 0.01}


@dataclass(frozen=True)
class Claim:
    """A statement about the target's place or size; `side`: about the patient's left or right."""

    text: str
    holds: bool
    side: bool = False


@dataclass(frozen=True)
class _View:
    """The target and what it may be compared with."""

    shapes: Mapping[str, Shape]
    label: str
    names: Mapping[str, str]
    image: ImageRecord

    @property
    def shape(self) -> Shape:
        return self.shapes[self.label]

    def named(self, name: str) -> Shape:
        return self.shapes[self.names[name]]

    @property
    def across(self) -> float:
        return self.shape.centre[0] / self.shape.width

    @property
    def down(self) -> float:
        return self.shape.centre[1] / self.shape.height


_Test = Callable[["re.Match[str]", _View], bool]


class ClaimReader:
    """Reads the claims of questions about one image."""

    def __init__(
        self, image: ImageRecord, shapes: Mapping[str, Shape], entities: Mapping[str, Entity]
    ) -> None:
        self._image, self._entities = image, entities
        # A claim holds where it does of the centres and of the medians.
        medians = {label: replace(shape, centre=shape.median) for label, shape in shapes.items()}
        self._readings = (shapes, medians)
        self._names = {
            name: label
            for label in [*shapes][::-1]
            for name in (*map(str.lower, entities[label].synonyms), _heard(label), label.lower())
        }
        longest = sorted(self._names, key=len, reverse=True)
        names = rf"(?:the )?({'|'.join(map(re.escape, longest))})\b"
        self._patterns = [
            (re.compile(pattern.replace("NAME", names).replace("SHOWN", SHOWN)), test, side)
            for pattern, test, side in _PATTERNS
        ]

    def read(self, question: str, label: str) -> Iterator[Claim]:
        """The claims of a question about `label`."""
        text = question.lower().replace("\u2019", "'")
        views = [_View(shapes, label, self._names, self._image) for shapes in self._readings]
        for pattern, test, side in self._patterns:
            for match in pattern.finditer(text):
                yield Claim(match[0], all(test(match, view) for view in views), side)
        own = self._entities[label].side
        for match in _OWN_SIDE.finditer(text):
            yield Claim(match[0], own in (None, match[1]), side=True)


def _heard(label: str) -> str:
    return language.spoken(label).lower()


_OWN_SIDE = re.compile(r"\b(?:on|in|to|at) the patient's (left|right)\b(?! of)")


def _quadrant(match: re.Match[str], view: _View) -> bool:
    return _is_towards(match[1], view) and _is_towards(match[2], view)


def _is_towards(word: str, view: _View, limit: float = 0.5) -> bool:
    place = view.across if word in ("left", "right") else view.down
    return place < limit if word in ("left", "upper", "top") else place > 1 - limit


def _part(match: re.Match[str], view: _View) -> bool:
    return _is_towards(match[1], view, 0.4 if match[2] == "third" else 0.5)


def _middle(match: re.Match[str], view: _View) -> bool:
    return abs(view.across - 0.5) < 0.2 and abs(view.down - 0.5) < 0.2


def _halfway(match: re.Match[str], view: _View) -> bool:
    return abs(view.down - 0.5) < 0.15


def _edge(match: re.Match[str], view: _View) -> bool:
    shape = view.shape
    x1, y1, x2, y2 = shape.box
    gaps = {
        "left": x1 / shape.width,
        "right": 1 - x2 / shape.width,
        "top": y1 / shape.height,
        "bottom": 1 - y2 / shape.height,
    }
    return gaps[match[1]] < 0.03


def _covers(match: re.Match[str], view: _View) -> bool:
    limit = _SHARE[match[2]]
    return view.shape.share > limit if match[1] == "more" else view.shape.share < limit


def _order(match: re.Match[str], view: _View) -> bool:
    above = view.shape.centre[1] < view.named(match[2]).centre[1]
    return above == (match[1] in ("above", "higher"))


def _depth(match: re.Match[str], view: _View) -> bool:
    if view.image.plane != "axial":  # said of anatomy, not of this image
        return True
    front = view.shape.centre[1] < view.named(match[2]).centre[1]
    return front == (match[1] == "in front of")


def _beside(match: re.Match[str], view: _View) -> bool:
    if not is_sided(view.image.plane, view.image.body_part):
        return False
    return (view.shape.centre[0] > view.named(match[2]).centre[0]) == (match[1] == "left")


def _between(match: re.Match[str], view: _View) -> bool:
    first, second = (view.named(match[n]).centre for n in (1, 2))
    own = view.shape.centre
    return any(min(first[i], second[i]) < own[i] < max(first[i], second[i]) for i in (0, 1))


def _size(match: re.Match[str], view: _View) -> bool:
    areas = [view.named(name).area for name in match.groups()[1:] if name]
    own = view.shape.area
    return own > max(areas) if match[1] == "larger" else own < min(areas)


def _ratio(match: re.Match[str], view: _View) -> bool:
    ratio = view.shape.area / view.named(match[2]).area
    return ratio >= 2 if match[1] == "at least twice" else ratio <= 0.5


def _distance(match: re.Match[str], view: _View) -> bool:
    closer = view.shape.off_centre < view.named(match[2]).off_centre
    return closer == (match[1] == "closer to")


_PATTERNS: tuple[tuple[str, _Test, bool], ...] = (
    (
        r"\b(?:in|at) the (upper|top|lower|bottom)[ -](left|right)(?: part| corner| quarter)?"
        r" of SHOWN",
        _quadrant,
        False,
    ),
    (
        r"\b(?:in|on) the (upper|top|lower|bottom|left|right)(?:[ -]hand)?"
        r" (half|part|side|third) of SHOWN",
        _part,
        False,
    ),
    (r"\bon the image's (left|right) (side)", _part, False),
    (r"\b(?:middle|cent(?:re|er)) of SHOWN(?!(?: [\w-]+)? than)", _middle, False),
    (r"\b(?:halfway down|mid-height in) SHOWN", _halfway, False),
    (r"\b(?:touching|reaching) the (top|bottom|left|right) edge of SHOWN", _edge, False),
    (
        r"\b(?:filling|covering|taking up) (more|less) than (half|a quarter|a tenth|a hundredth)"
        r" of SHOWN",
        _covers,
        False,
    ),
    (r"\b(above|below) NAME in SHOWN", _order, False),
    (r"\b(higher|lower) in the picture than NAME", _order, False),
    (r"\b(in front of|behind) NAME", _depth, False),
    (r"\b(?:on|to) the patient's (left|right) of NAME", _beside, True),
    (r"\bbetween NAME and NAME in SHOWN", _between, False),
    (r"\b(larger|smaller) than (?:both )?NAME(?: and NAME)? here", _size, False),
    (r"\b(at least twice|less than half) as large as NAME here", _ratio, False),
    (r"\b(closer to|further from) the cent(?:re|er) of SHOWN than NAME", _distance, False),
)
