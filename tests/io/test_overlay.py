"""The picture of an answer: sizes, what is drawn where, and text of any length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medisee.boxes import mask_to_box
from medisee.io import read_image
from medisee.io.caption import wrap
from medisee.io.overlay import PALETTE
from medisee.structures import Answer, Finding, Orientation, RefusalReason

HEIGHT, WIDTH = 60, 100


def answer(masks, *, pixels=None, refusal=None, text="It is here.", **image) -> Answer:
    pixels = np.full((HEIGHT, WIDTH), 60, np.uint8) if pixels is None else pixels
    found = [Finding(m, mask_to_box(m) or (0.0, 0.0, 1.0, 1.0), 0.9, label="liver") for m in masks]
    return Answer("Where?", text, found, refusal, [], replace(read_image(pixels), **image), "nano")


def disc(x: float, y: float, radius: float, shape=(HEIGHT, WIDTH)) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def coloured(picture, colour, tolerance=40) -> np.ndarray:
    return np.abs(np.asarray(picture).astype(int) - colour).max(axis=2) < tolerance


def test_outline_fill_and_bare_ground():
    picture = answer([disc(50, 30, 15)]).overlay()
    pixels = np.asarray(picture).astype(int)
    scale = 768 / WIDTH
    inside, outside = (
        pixels[int(30 * scale), int(50 * scale)],
        pixels[int(30 * scale), int(15 * scale)],
    )
    assert outside.tolist() == [60, 60, 60]
    expected = 60 + 0.26 * (np.array(PALETTE[0]) - 60)
    assert np.abs(inside - expected).max() <= 2
    row = coloured(picture, PALETTE[0])[int(30 * scale)]
    edge = np.flatnonzero(row[: int(50 * scale)])
    assert edge.size > 0
    assert np.abs(edge - 35.5 * scale).max() < 1.5 * scale  # outline or box, both at the left end


def test_refusal_is_the_bare_image():
    ramp = np.tile(np.arange(WIDTH, dtype=np.uint8), (HEIGHT, 1))
    picture = np.asarray(answer([], pixels=ramp, refusal=RefusalReason.NOT_IN_VIEW).overlay())
    height = round(HEIGHT * 768 / WIDTH)
    assert picture.shape[0] > height
    image = picture[:height]
    assert (image == image[..., :1]).all()
    assert (np.diff(image[100, :, 0].astype(int)) >= -1).all()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((60, 100), 768), ((600, 1000), 1000), ((2400, 2000), 1600), ((1, 1), 768)],
)
def test_longest_side(shape, expected):
    given = answer([], pixels=np.zeros(shape, np.uint8), refusal=RefusalReason.UNCLEAR, text="")
    picture = given.overlay()
    tall = shape[0] > shape[1]
    assert picture.width == max(round(expected * shape[1] / shape[0]) if tall else expected, 640)


def test_true_proportions():
    given = answer([], spacing=(3.0, 1.0))
    tall = given.overlay()
    flat = answer([]).overlay()
    # 60 rows of 3 mm by 100 columns of 1 mm: 180 mm high.
    assert tall.width == 640
    assert tall.height - flat.height == pytest.approx(768 - 461, abs=40)


@pytest.mark.parametrize(
    "pixels", [np.zeros((60, 100), np.uint8), np.zeros((1500, 2500), np.uint8)]
)
def test_a_single_pixel_colours_neither_nothing_nor_everything(pixels):
    mask = np.zeros(pixels.shape, bool)
    mask[pixels.shape[0] // 2, pixels.shape[1] // 2] = True
    picture = answer([mask], pixels=pixels).overlay()
    share = coloured(picture, PALETTE[0]).mean()
    assert 0 < share < 0.02


def test_an_empty_mask_keeps_its_box_and_label():
    picture = answer([np.zeros((HEIGHT, WIDTH), bool)]).overlay()
    assert coloured(picture, PALETTE[0]).any()


def test_every_finding_has_its_colour():
    masks = [disc(10 + 20 * n, 30, 7) for n in range(4)]
    picture = answer(masks).overlay()
    for colour in PALETTE[:4]:
        assert coloured(picture, colour, 12).sum() > 100
    assert answer([disc(50, 30, 9)] * 10).overlay()  # more findings than colours


def test_directions_are_shown_where_known():
    plain = np.asarray(answer([], text="").overlay())
    known = np.asarray(answer([], text="", orientation=Orientation("R", "A")).overlay())
    changed = (plain != known).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert 0 < changed.mean() < 0.01
    assert columns.min() < 40
    assert columns.max() > 768 - 40
    assert rows.min() < 40


@pytest.mark.parametrize("text", ["", "word " * 4000, "x" * 100_000, "肝臓はどこですか", "a\nb\tc"])
def test_any_text(text):
    given = replace(answer([disc(50, 30, 9)], text=text), question=text, warnings=[text])
    picture = given.overlay()
    assert picture.width == 768
    assert picture.height < 1400


def test_wrapped_lines_fit_and_lose_nothing():
    text = "The gallbladder is a small pear-shaped sac under the liver that stores bile."
    lines = wrap(text, 17, 200, most=10)
    assert " ".join(lines) == text
    assert len(lines) > 2
    assert wrap("abcdefghij" * 5, 17, 100, most=99) != ["abcdefghij" * 5]
    assert "".join(wrap("abcdefghij" * 5, 17, 100, most=99)) == "abcdefghij" * 5
    cut = wrap(text, 17, 200, most=2)
    assert len(cut) == 2
    assert cut[-1].endswith("...")
    assert wrap("", 17, 200, most=2) == []


def test_drawing_changes_nothing():
    given = answer([disc(50, 30, 9)])
    before = given.image.display.copy(), given.findings[0].mask.copy()
    given.overlay()
    assert np.array_equal(given.image.display, before[0])
    assert np.array_equal(given.findings[0].mask, before[1])
