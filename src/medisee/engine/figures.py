"""Pictures of a built set, as in the paper: word cloud, categories, lengths, perspectives.

Drawn with Pillow alone. Every picture is PNG at twice the size in which it is meant to be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medisee.engine.stats import Stats

__all__ = ["draw_figures"]

_INK, _PALE, _LINE = "#20262e", "#6b7480", "#d9dee4"
_BLUE, _ORANGE = "#3b6ea5", "#d98032"
_CLOUD = ("#274b73", "#3b6ea5", "#5a8f7b", "#a5623b", "#6a4c78", "#7d7a3c", "#2f7f8c")
_TEXT = 24
_CELL = 4  # pixels of a cell in which the cloud looks for room

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_figures(stats: Stats, folder: str | Path) -> list[Path]:
    """Draws the pictures of a set into `folder` and gives their files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "word_cloud": word_cloud(stats.categories),
        "category_records": bars("Records about each category", stats.categories),
        "category_images": bars("Images of each category", stats.category_images),
        "lengths": lengths(stats.question_words, stats.answer_words),
        "perspectives": perspectives(stats.balance),
    }
    paths = {name: folder / f"{name}.png" for name in pictures}
    for name, picture in pictures.items():
        picture.save(paths[name], optimize=True)
    return list(paths.values())


def word_cloud(
    counts: Mapping[str, int], width: int = 2000, height: int = 1100, most: int = 200
) -> Image.Image:
    """Names in a size that grows with the root of their number, the largest in the middle."""
    picture, pen = _canvas(width, height)
    taken = np.zeros((height // _CELL, width // _CELL), bool)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    for number, (name, count) in enumerate(ranked):
        size = 22 + 98 * (count / ranked[0][1]) ** 0.5
        while size >= 14:
            font = _font(size)
            left, top, right, bottom = pen.textbbox((0, 0), name, font=font)
            place = _claim_room(taken, right - left + 14, bottom - top + 10)
            if place is not None:
                x, y = place[0] + 7 - left, place[1] + 5 - top
                pen.text((x, y), name, fill=_CLOUD[number % len(_CLOUD)], font=font)
                break
            size *= 0.85
    return picture


def _claim_room(taken: NDArray[np.bool_], wide: float, high: float) -> tuple[int, int] | None:
    """The free place (x, y px) of that size that lies nearest to the middle; None: no room."""
    rows, columns = int(high) // _CELL + 1, int(wide) // _CELL + 1
    sums = np.pad(taken.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    if rows > taken.shape[0] or columns > taken.shape[1]:
        return None
    filled = (
        sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns]
        + sums[:-rows, :-columns]
    )  # fmt: skip
    y, x = np.indices(filled.shape)
    middle_y, middle_x = (taken.shape[0] - rows) / 2, (taken.shape[1] - columns) / 2
    away = ((x - middle_x) / taken.shape[1]) ** 2 + ((y - middle_y) / taken.shape[0]) ** 2
    away[filled > 0] = np.inf
    best = int(away.argmin())
    if not np.isfinite(away.flat[best]):
        return None
    row, column = divmod(best, filled.shape[1])
    taken[row : row + rows, column : column + columns] = True
    return column * _CELL, row * _CELL


def bars(title: str, counts: Mapping[str, int], columns: int = 3) -> Image.Image:
    """A bar for each name, the most frequent first, in columns; lengths by root of the number."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = max(1, -(-len(ranked) // columns))
    line, wide = 30, 900
    picture, pen = _canvas(columns * wide + 60, rows * line + 150)
    pen.text((40, 30), title, fill=_INK, font=_font(38))
    pen.text((40, 80), "bars by the square root of the number", fill=_PALE, font=_font(_TEXT))
    most = max(counts.values(), default=1)
    for number, (name, count) in enumerate(ranked):
        x, y = 40 + number // rows * wide, 124 + number % rows * line
        name = _fitted(pen, name, 400)
        pen.text((x + 410, y), name, fill=_INK, font=_font(_TEXT), anchor="ra")
        end = x + 420 + 340 * (count / most) ** 0.5
        pen.rectangle((x + 420, y + 2, end, y + line - 6), fill=_BLUE)
        pen.text((end + 8, y), f"{count:,}", fill=_PALE, font=_font(_TEXT))
    return picture


def lengths(questions: Mapping[int, int], answers: Mapping[int, int]) -> Image.Image:
    """How many implicit questions, and answers to them, have so many words."""
    picture, pen = _canvas(1800, 1240)
    _histogram(pen, "Words in an implicit question", questions, _BLUE, top=30)
    _histogram(pen, "Words in its answer", answers, _ORANGE, top=640)
    return picture


def _histogram(
    pen: ImageDraw.ImageDraw, title: str, counts: Mapping[int, int], colour: str, top: int
) -> None:
    left, right, base = 150, 1740, top + 510
    pen.text((40, top), title, fill=_INK, font=_font(38))
    low, high = min(counts, default=0), max(counts, default=0)
    step, most = (right - left) / (high - low + 1), max(counts.values(), default=1)
    for level in (0.25, 0.5, 0.75, 1.0):
        y = base - 400 * level
        pen.line((left, y, right, y), fill=_LINE, width=2)
        label = f"{round(most * level):,}"
        pen.text((left - 12, y), label, fill=_PALE, font=_font(_TEXT), anchor="rm")
    for words in range(low, high + 1):
        x = left + (words - low) * step
        height = 400 * counts.get(words, 0) / most
        pen.rectangle((x + step * 0.1, base - height, x + step * 0.9, base), fill=colour)
        if step >= 30 or words % 5 == 0:
            place = (x + step / 2, base + 8)
            pen.text(place, str(words), fill=_INK, font=_font(_TEXT), anchor="ma")


def perspectives(balance: Mapping[str, int]) -> Image.Image:
    """Shares of the implicit questions: perspective by row, short and long in it."""
    picture, pen = _canvas(1800, 420)
    pen.text((40, 30), "Implicit questions by perspective and length", fill=_INK, font=_font(38))
    whole = sum(balance.values()) or 1
    most = max((sum(_pair(balance, name)) for name in ("attribute", "location")), default=1) or 1
    for row, name in enumerate(("attribute", "location")):
        y, x = 120 + 140 * row, 230.0
        pen.text((x - 20, y + 50), name, fill=_INK, font=_font(30), anchor="rm")
        for count, length, colour in zip(
            _pair(balance, name), ("short", "long"), (_BLUE, _ORANGE), strict=True
        ):
            end = x + 1500 * count / most
            pen.rectangle((x, y, end, y + 100), fill=colour)
            label = f"{length}: {count:,} ({count / whole:.0%})"
            pen.text((x + 16, y + 50), label, fill="white", font=_font(28), anchor="lm")
            x = end
    return picture


def _pair(balance: Mapping[str, int], name: str) -> Sequence[int]:
    return [balance.get(f"{name}, {length}", 0) for length in ("short", "long")]


def _canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (width, height), "white")
    return picture, ImageDraw.Draw(picture)


def _font(size: float) -> _Font:
    return ImageFont.load_default(size)


def _fitted(pen: ImageDraw.ImageDraw, text: str, room: int) -> str:
    """The text, its end cut off where it has no room."""
    if pen.textlength(text, _font(_TEXT)) <= room:
        return text
    while pen.textlength(f"{text}...", _font(_TEXT)) > room:
        text = text[:-1]
    return f"{text}..."
