"""The caption of an overlay: question, what was found, explanation, warnings, source."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from medisee.structures import Answer, Finding, RefusalReason

__all__ = ["BACKGROUND", "Colour", "draw_caption", "font", "label_of", "wrap"]

Colour = tuple[int, int, int]

BACKGROUND: Colour = (15, 19, 24)
_BRIGHT: Colour = (243, 246, 250)
_PLAIN: Colour = (198, 207, 218)
_MUTED: Colour = (124, 136, 150)
_AMBER: Colour = (240, 185, 85)
_RULE: Colour = (42, 50, 60)

_REFUSALS = {
    RefusalReason.NOT_IN_VIEW: "Not in this image",
    RefusalReason.WRONG_MODALITY: "This kind of image does not show it",
    RefusalReason.NOT_MEDICAL: "Not a medical image or question",
    RefusalReason.UNCLEAR: "The question is not clear",
}
_FOOTER = "research tool, not for diagnosis"


@dataclass(frozen=True)
class _Block:
    """Wrapped lines in one size and colour, with the gap above; a chip marks a finding."""

    lines: list[str]
    size: int
    colour: Colour
    gap: int
    chip: Colour | None = None

    @property
    def line_height(self) -> int:
        return round(self.size * 1.42)

    @property
    def height(self) -> int:
        return self.gap + self.line_height * len(self.lines)


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that Pillow carries, in pixels."""
    return ImageFont.load_default(size)


def label_of(finding: Finding, index: int) -> str:
    """What to call a finding: its label, or its number while it has none."""
    return finding.label or f"finding {index + 1}"


def draw_caption(answer: Answer, colours: Sequence[Colour], width: int) -> Image.Image:
    """The band below the picture, `width` pixels wide and as high as its text."""
    unit = width / 768 if width > 768 else 1.0
    margin = round(26 * unit)
    blocks = _blocks(answer, colours, width - 2 * margin, unit)
    height = sum(block.height for block in blocks) + 2 * round(20 * unit)
    band = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(band)
    draw.line((0, 0, width, 0), _RULE, 2)
    y = round(20 * unit)
    for block in blocks:
        y += block.gap
        _draw_block(band, draw, block, margin, y)
        y += block.height - block.gap
    return band


def _blocks(answer: Answer, colours: Sequence[Colour], width: int, unit: float) -> list[_Block]:
    def block(
        text: str, size: float, colour: Colour, gap: float, most: int, chip: Colour | None = None
    ) -> _Block:
        pixels = round(size * unit)
        room = width - (round(pixels * 1.5) if chip else 0)
        return _Block(wrap(text, pixels, room, most), pixels, colour, round(gap * unit), chip)

    blocks = [block(answer.question, 22, _BRIGHT, 0, most=3)]
    if answer.refusal is not None:
        blocks.append(block(_REFUSALS[answer.refusal], 17, _BRIGHT, 10, most=1, chip=_MUTED))
    elif not answer.findings:
        blocks.append(block("Nothing was outlined", 17, _BRIGHT, 10, most=1, chip=_MUTED))
    for index, (finding, colour) in enumerate(zip(answer.findings, colours, strict=True)):
        text = f"{label_of(finding, index)}, {finding.score:.0%} sure of the outline"
        blocks.append(block(text, 17, _BRIGHT, 10 if index == 0 else 2, most=1, chip=colour))
    if answer.text.strip():
        blocks.append(block(answer.text, 17, _PLAIN, 10, most=10))
    blocks += [block(warning, 15, _AMBER, 8, most=3) for warning in answer.warnings]
    footer = f"MediSee {answer.model}  ·  {_FOOTER}  ·  {answer.image.source}"
    return [*blocks, block(footer, 13, _MUTED, 14, most=1)]


def _draw_block(
    band: Image.Image, draw: ImageDraw.ImageDraw, block: _Block, x: int, y: int
) -> None:
    if block.chip is not None:
        side = round(block.size * 0.82)
        chip = Image.new("L", (side * 4, side * 4))
        ImageDraw.Draw(chip).rounded_rectangle((0, 0, side * 4 - 1, side * 4 - 1), side, 255)
        middle = y + (block.line_height - side) // 2
        smooth = chip.resize((side, side), Image.Resampling.LANCZOS)
        band.paste(block.chip, (x, middle, x + side, middle + side), smooth)
        x += round(block.size * 1.5)
    for number, line in enumerate(block.lines):
        baseline = y + number * block.line_height + round(block.line_height * 0.72)
        draw.text((x, baseline), line, block.colour, font(block.size), "ls")


def wrap(text: str, size: int, width: int, most: int) -> list[str]:
    """Break text into at most `most` lines of `width` pixels; an ellipsis ends what is cut.

    A word longer than a line is broken anywhere.
    """
    lines: list[str] = []
    line = ""
    # No line holds more letters than pixels, so a text of a million letters is not measured.
    for word in text[: (most + 1) * width].split():
        longer = f"{line} {word}" if line else word
        if _width(longer, size) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = word
        while len(lines) <= most and _width(line, size) > width:
            cut = _fitting(line, size, width)
            lines.append(line[:cut])
            line = line[cut:]
        if len(lines) > most:
            break
    lines = [*lines, line] if line else lines
    return lines if len(lines) <= most else [*lines[: most - 1], _cut(lines[most - 1], size, width)]


def _width(text: str, size: int) -> float:
    return font(size).getlength(text)


def _fitting(word: str, size: int, width: int) -> int:
    """How many letters of the word fit, at least one."""
    lengths = range(1, len(word) + 1)
    fitting = bisect_right(lengths, float(width), key=lambda n: _width(word[:n], size))
    return max(fitting, 1)


def _cut(line: str, size: int, width: int) -> str:
    """As much of the line as fits with an ellipsis."""
    return (
        line[: _fitting(line, size, width - math.ceil(_width("...", size)))].rstrip(" ,;") + "..."
    )
