"""Label Studio: brushes, outlines, and exports with faults."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medisee.data.importers import ImportOptions, Selection, import_source
from medisee.data.importers.label_studio import decode_brush
from medisee.data.sa_med2d import Index
from medisee.errors import DataError

H, W = 20, 30
EVERYTHING = ImportOptions(selection=Selection(min_area=0, min_contrast=0, min_completeness=0))


def pack(mask, sizes=(3, 4, 8, 16), literal=False):
    """A brush's code, written from the format's description: runs, or single values."""
    values = np.zeros((*mask.shape, 4), np.uint8)
    values[mask] = (10, 20, 30, 255)
    flat = values.ravel().tolist()
    bits = f"{len(flat):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    at = 0
    while at < len(flat):
        run = 1
        longest = 2 ** sizes[1] if literal else 2 ** sizes[3]
        while run < longest and at + run < len(flat) and (literal or flat[at + run] == flat[at]):
            run += 1
        if literal:
            words = "".join(f"{value:08b}" for value in flat[at : at + run])
            bits += f"0{1:02b}{run - 1:0{sizes[1]}b}{words}"
        else:
            bits += f"1{3:02b}{run - 1:0{sizes[3]}b}{flat[at]:08b}"
        at += run
    bits += "0" * (-len(bits) % 8)
    return [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]


def result(kind, name, number="r1", **value):
    return {
        "id": number,
        "type": kind,
        "original_width": W,
        "original_height": H,
        "value": {kind: [name], **value},
    }


def write(root, *annotations, **data):
    root.mkdir()
    grey = np.random.default_rng(0).integers(0, 255, (H, W)).astype(np.uint8)
    Image.fromarray(grey).save(root / "scan.png")
    task = {"id": 5, "data": {"image": "/data/upload/1/0a1b2c3d-scan.png", **data}}
    (root / "export.json").write_text(json.dumps([{**task, "annotations": list(annotations)}]))
    return root


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.booleans())
def test_a_brush_comes_back(seed, share, literal):
    mask = np.random.default_rng(seed).random((H, W)) < share
    assert np.array_equal(decode_brush(pack(mask, literal=literal), H, W), mask)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=40), st.booleans())
def test_a_damaged_brush_is_one_error(tail, headed):
    code = pack(np.zeros((H, W), bool))[:7] * headed + tail
    with suppress(DataError):
        assert decode_brush(code, H, W).shape == (H, W)


def test_every_shape_falls_on_its_pixels(tmp_path):
    brush = np.zeros((H, W), bool)
    brush[3:7, 2:9] = True
    results = [
        result("brushlabels", "Liver", format="rle", rle=pack(brush)),
        result("polygonlabels", "spleen", points=[[10, 10], [50, 10], [50, 50], [10, 50]]),
        result("rectanglelabels", "kidney_left", x=50, y=50, width=20, height=30, rotation=0),
        result("rectanglelabels", "Aorta", x=50, y=50, width=20, height=30, rotation=90),
        result("ellipselabels", "stomach", x=50, y=50, radiusX=20, radiusY=25),
    ]
    root = write(tmp_path / "in", {"result": results}, patient="p3", split="val", licence="CC0")
    report = import_source(root, tmp_path / "out", EVERYTHING)
    assert report.flaws == []
    data = Index.open(tmp_path / "out")
    (record,) = data
    assert (record.patient, record.split, record.licence) == ("in/p3", "val", "CC0")
    assert record.image.endswith("--scan.png")
    assert np.array_equal(data.load_mask(record, "liver"), brush)
    boxes = {mask.label: mask.box for mask in record.masks}
    assert boxes["spleen"] == (3, 2, 15, 10)
    assert boxes["left kidney"] == (15, 10, 21, 16)
    assert boxes["aorta"] == (9, 10, 15, 16)  # turned clockwise about its corner: to the left
    area = data.load_mask(record, "stomach").sum()
    assert area == pytest.approx(np.pi * 6 * 5, rel=0.05)


def test_the_annotation_that_counts(tmp_path):
    def one(name, **facts):
        return {"result": [result("rectanglelabels", name, x=0, y=0, width=50, height=50)], **facts}

    annotations = [
        one("liver", updated_at="2024-01-02"),
        one("spleen", updated_at="2024-01-01", ground_truth=True),
        one("aorta", updated_at="2024-01-03", was_cancelled=True),
    ]
    report = import_source(write(tmp_path / "in", *annotations), tmp_path / "out", EVERYTHING)
    assert set(report.categories) == {"spleen"}


def test_faults_are_reported_one_by_one(tmp_path):
    good = result("rectanglelabels", "liver", x=0, y=0, width=50, height=50)
    results = [
        good,
        {**good, "id": "size", "original_width": W + 1},
        {**good, "id": "turned", "image_rotation": 90},
        result("brushlabels", "liver", "cut", rle=pack(np.zeros((H, W), bool))[:9]),
        result("brushlabels", "liver", "empty", rle=pack(np.zeros((H, W), bool))),
        result("polygonlabels", "liver", "line", points=[[1, 1], [2, 2]]),
        result("rectanglelabels", "liver", "nothing"),
    ]
    report = import_source(
        write(tmp_path / "in", {"result": results}), tmp_path / "out", EVERYTHING
    )
    assert (report.images, report.masks, report.images_found) == (1, 1, 1)
    assert [file.split("#")[1] for file, _, _ in report.flaws] == [
        "size", "turned", "cut", "line", "nothing", "empty",
    ]  # fmt: skip


def test_tasks_without_image_or_annotation_are_counted(tmp_path):
    root = write(tmp_path / "in")
    report = import_source(root, tmp_path / "out", EVERYTHING)
    assert (report.images_found, report.flaws[0][1]) == (1, "the task has no annotation")
    (root / "scan.png").unlink()
    report = import_source(root, tmp_path / "out2", EVERYTHING)
    assert "missing" in report.flaws[0][1]
