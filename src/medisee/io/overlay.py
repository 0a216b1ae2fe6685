"""An answer as a picture: the image with masks, boxes and labels, and a caption below.

Everything is drawn from distances in numpy, so that edges are smooth at every scale, and text
with the TrueType font that Pillow carries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from medisee.io.caption import BACKGROUND, Colour, draw_caption, font, label_of
from medisee.structures import Answer, Finding, MedicalImage

__all__ = ["PALETTE", "draw_answer"]

PALETTE: tuple[Colour, ...] = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 178, 130),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (153, 153, 255),
    (200, 200, 200),
)
"""Okabe and Ito's colours, told apart by colour-blind people too; green a little brighter."""

_LEAST_SIDE, _MOST_SIDE = 768, 1600
_LEAST_WIDTH = 640  # room for the caption under a narrow image
_FILL = 0.26

Canvas = NDArray[np.floating[Any]]


def draw_answer(answer: Answer) -> Image.Image:
    """RGB picture of an answer; a refusal is the bare image with a note below.

    Small images are enlarged to a longest side of 768 pixels, large ones reduced to 1600;
    pixels that are not square in mm are shown with their true proportions.
    """
    picture = _enlarge(answer.image)
    canvas = np.asarray(picture, dtype=np.float32).copy()
    scale = picture.width / answer.image.width, picture.height / answer.image.height
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(answer.findings))]
    for finding, colour in zip(answer.findings, colours, strict=True):
        _draw_mask(canvas, finding.mask, colour)
        _draw_box(canvas, _scaled(finding.box, scale), colour)
    picture = Image.fromarray(np.rint(np.clip(canvas, 0, 255)).astype(np.uint8))
    _draw_directions(picture, answer.image)
    _draw_tags(picture, answer.findings, colours, scale)
    return _stack(picture, draw_caption(answer, colours, max(picture.width, _LEAST_WIDTH)))


def _enlarge(image: MedicalImage) -> Image.Image:
    row, column = image.spacing or (1.0, 1.0)
    unit = min(row, column)
    width, height = image.width * column / unit, image.height * row / unit
    longest = max(width, height)
    factor = min(max(longest, _LEAST_SIDE), _MOST_SIDE) / longest
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return Image.fromarray(image.display).resize(size, Image.Resampling.BICUBIC)


def _scaled(box: tuple[float, ...], scale: tuple[float, float]) -> tuple[float, ...]:
    return box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1]


def _stroke_width(canvas: Canvas) -> float:
    return max(canvas.shape[:2]) / 768


def _draw_mask(canvas: Canvas, mask: NDArray[np.bool_], colour: Colour) -> None:
    """Translucent fill, a dark halo for bright grounds, and an outline in the colour."""
    if not mask.any():
        return
    width = 2.2 * _stroke_width(canvas)
    inside = _signed_distance(mask, canvas.shape[1], canvas.shape[0], width)
    _blend(canvas, colour, _FILL * np.clip(inside + 0.5, 0, 1))
    _blend(canvas, (0, 0, 0), 0.45 * _line(inside, width + 2.4))
    _blend(canvas, colour, _line(inside, width))


def _signed_distance(mask: NDArray[np.bool_], width: int, height: int, line: float) -> Canvas:
    """Distance in canvas pixels to the smoothed edge of the mask, positive inside.

    The enlarged mask is a smooth field with its edge at one half; near the edge the distance is
    the field's difference from one half over its slope. The least slope keeps flat spots, where
    two edges nearly meet, from becoming blots; where the field has settled the edge is far.
    """
    field, sigma = _smooth_field(mask, (width, height), line / 2)
    slope = np.hypot(*np.gradient(field))
    # Across a straight edge the slope is 0.4 / sigma; half of that is a flat spot.
    distance = (field - 0.5) / np.maximum(slope, 0.2 / sigma)
    settled = np.abs(field - 0.5) > 0.49
    return np.where(settled, np.sign(field - 0.5) * max(width, height), distance)


def _smooth_field(
    mask: NDArray[np.bool_], size: tuple[int, int], least: float
) -> tuple[Canvas, float]:
    """The mask on the canvas, 0..1, as smooth as its own shape bears, and how smooth (sigma).

    Rounding off the pixels' corners must not eat thin vessels or targets of a pixel or two: the
    widest blur that moves less than a tenth of the area is taken, else none. Blurs are in canvas
    pixels and not below `least`.
    """
    per_pixel = max(size[0] / mask.shape[1], size[1] / mask.shape[0], 1.0)
    tent = 0.4 * per_pixel  # what bilinear enlarging blurs
    small = Image.fromarray(mask.astype(np.uint8) * 255)
    large = small.resize(size, Image.Resampling.BILINEAR)
    truth = np.asarray(small.resize(size, Image.Resampling.BOX)) > 127
    for sigma in (max(per_pixel, least), max(0.6 * per_pixel, least)):
        soft = large.filter(ImageFilter.GaussianBlur(sigma))
        field = np.asarray(soft, dtype=np.float32) / 255
        if np.count_nonzero((field > 0.5) ^ truth) < 0.1 * np.count_nonzero(truth):
            return field, float(np.hypot(sigma, tent))
    return np.asarray(large, dtype=np.float32) / 255, tent


def _draw_box(canvas: Canvas, box: tuple[float, ...], colour: Colour) -> None:
    distance = _rounded_rectangle(canvas.shape[0], canvas.shape[1], box, 7 * _stroke_width(canvas))
    width = 1.4 * _stroke_width(canvas)
    _blend(canvas, (0, 0, 0), 0.35 * _line(distance, width + 1.6))
    _blend(canvas, colour, 0.9 * _line(distance, width))


def _rounded_rectangle(height: int, width: int, box: tuple[float, ...], radius: float) -> Canvas:
    """Distance of each pixel's centre to the edge of a rounded box, negative outside."""
    x1, y1, x2, y2 = box
    radius = min(radius, max(x2 - x1, 0) / 2, max(y2 - y1, 0) / 2)
    x = np.abs(np.arange(width, dtype=np.float32) + 0.5 - (x1 + x2) / 2) - (x2 - x1) / 2 + radius
    y = np.abs(np.arange(height, dtype=np.float32) + 0.5 - (y1 + y2) / 2) - (y2 - y1) / 2 + radius
    outside = np.hypot(np.maximum(x, 0)[None], np.maximum(y, 0)[:, None])
    within = np.minimum(np.maximum(x[None], y[:, None]), 0)
    return (radius - outside - within).astype(np.float32)


def _line(distance: Canvas, width: float) -> Canvas:
    """Coverage 0..1 of a line of this width along distance zero."""
    return np.clip(width / 2 + 0.5 - np.abs(distance), 0, 1)


def _blend(canvas: Canvas, colour: Colour, alpha: Canvas) -> None:
    canvas += (np.asarray(colour, dtype=np.float32) - canvas) * alpha[..., None]


def _draw_directions(picture: Image.Image, image: MedicalImage) -> None:
    """The patient's directions as small letters at the edges, where the file states them."""
    if image.orientation is None:
        return
    width, height = picture.size
    size = round(17 * max(width, height) / 768)
    margin = size * 0.8
    draw = ImageDraw.Draw(picture)
    for letter, place in (
        (image.orientation.left, (margin, height / 2)),
        (image.orientation.right, (width - margin, height / 2)),
        (image.orientation.top, (width / 2, margin)),
        (image.orientation.bottom, (width / 2, height - margin)),
    ):
        draw.text(
            place, letter, (205, 213, 222), font(size), "mm", stroke_width=2, stroke_fill=(0, 0, 0)
        )


def _draw_tags(
    picture: Image.Image,
    findings: list[Finding],
    colours: list[Colour],
    scale: tuple[float, float],
) -> None:
    """Name and score of each finding on its colour, away from the other findings and tags."""
    if not findings:
        return
    found = Image.fromarray(np.any([finding.mask for finding in findings], axis=0))
    busy = np.array(found.resize(picture.size, Image.Resampling.NEAREST))
    for number, finding in enumerate(findings):
        text = f"{label_of(finding, number)}  {finding.score:.0%}"
        tag = _tag(text, colours[number], round(15 * max(picture.size) / 768))
        x, y = _best_place(_scaled(finding.box, scale), tag.size, busy)
        picture.paste(tag, (x, y), tag)
        busy[y : y + tag.height, x : x + tag.width] = True


def _tag(text: str, colour: Colour, size: int) -> Image.Image:
    """A rounded label; drawn four times as large, so that its corners are smooth."""
    width, height = round(font(size).getlength(text) + size), round(size * 1.6)
    shape = Image.new("L", (width * 4, height * 4))
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, width * 4 - 1, height * 4 - 1), size * 1.4, 255)
    tag = Image.new("RGB", (width, height), colour)
    middle = height / 2 + size * 0.36
    ImageDraw.Draw(tag).text((size / 2, middle), text, (12, 16, 20), font(size), "ls")
    tag.putalpha(shape.resize((width, height), Image.Resampling.LANCZOS))
    return tag


def _best_place(
    box: tuple[float, ...], size: tuple[int, int], busy: NDArray[np.bool_]
) -> tuple[int, int]:
    """Top left corner, around the box, of the tag that covers the least of `busy` (h, w)."""
    (width, height), (x1, y1, x2, y2), gap = size, box, 4
    spots = [
        (x1, y1 - height - gap),
        (x1, y2 + gap),
        (x2 - width, y1 - height - gap),
        (x2 - width, y2 + gap),
        (x2 + gap, y1),
        (x1 - width - gap, y1),
        (x1 + gap, y1 + gap),
        (x1 + gap, y2 - height - gap),
    ]

    def cover(spot: tuple[int, int]) -> int:
        return int(np.count_nonzero(busy[spot[1] : spot[1] + height, spot[0] : spot[0] + width]))

    limits = max(busy.shape[1] - width, 0), max(busy.shape[0] - height, 0)
    inside = [
        (min(max(round(x), 0), limits[0]), min(max(round(y), 0), limits[1])) for x, y in spots
    ]
    return min(inside, key=cover)  # the first of equals


def _stack(picture: Image.Image, caption: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (caption.width, picture.height + caption.height), BACKGROUND)
    sheet.paste(picture, ((caption.width - picture.width) // 2, 0))
    sheet.paste(caption, (0, picture.height))
    return sheet
