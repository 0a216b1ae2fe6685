"""COCO: polygons, run lengths, and everything that can be wrong with an annotation."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from medisee.data.importers import ImportOptions, Selection, import_source
from medisee.data.importers.shapes import fill_polygons, read_coco_rle
from medisee.data.sa_med2d import Index
from medisee.errors import DataError

H, W = 40, 60
SQUARE = [[10, 10, 30, 10, 30, 25, 10, 25]]
EVERYTHING = ImportOptions(selection=Selection(min_area=0, min_contrast=0, min_completeness=0))


def document(annotations, images=None, **more):
    images = images or [{"id": 1, "file_name": "a.png", "height": H, "width": W, "license": 3}]
    categories = [{"id": 1, "name": "Liver"}, {"id": 2, "name": "kidney_right"}]
    licences = [{"id": 3, "name": "CC BY 4.0"}]
    full = [{"id": n, "image_id": 1, "category_id": 1, **a} for n, a in enumerate(annotations)]
    base = {"images": images, "categories": categories, "licenses": licences}
    return {**base, "annotations": full, **more}


def write(root, content, name="instances.json"):
    (root / "images").mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(0).integers(0, 255, (H, W)).astype(np.uint8)
    Image.fromarray(grey).save(root / "images" / "a.png")
    (root / name).write_text(json.dumps(content))
    return root


def bits(seed=0):
    return np.random.default_rng(seed).random((H, W)) > 0.6


def test_polygons_and_both_kinds_of_run_lengths(tmp_path):
    packed = coco.encode(np.asfortranarray(bits(), np.uint8))
    flat = bits(1).ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat]))) if flat.any() else []
    counts = np.diff([0, *edges, flat.size]).tolist()
    segmentations = [
        SQUARE,
        {"size": [H, W], "counts": packed["counts"].decode()},
        {"size": [H, W], "counts": counts},
    ]
    annotations = [
        {"segmentation": s, "category_id": 1 + (n > 1)} for n, s in enumerate(segmentations)
    ]
    root = write(tmp_path / "in", document(annotations))
    report = import_source(root, tmp_path / "out", EVERYTHING)
    assert report.flaws == []
    (record,) = Index.open(tmp_path / "out")
    data = Index.open(tmp_path / "out")
    assert record.labels == ("liver", "right kidney")
    assert record.licence == "CC BY 4.0"
    square = np.zeros((H, W), bool)
    square[10:25, 10:30] = True
    files = record.files("liver")
    assert np.array_equal(data.load_union(files[:1]), square)
    assert np.array_equal(data.load_union(files[1:]), bits())
    assert np.array_equal(data.load_mask(record, "right kidney"), bits(1))


def test_bad_annotations_are_reported_one_by_one(tmp_path):
    bad = [
        {"segmentation": []},
        {"segmentation": [[1, 2, 3]]},
        {"segmentation": [[1, "x", 3, 4, 5, 6]]},
        {"segmentation": {"size": [H, W + 1], "counts": "abc"}},
        {"segmentation": {"size": [H, W], "counts": [1, 2, 3]}},
        {"segmentation": {"size": [H, W], "counts": "\u00ff~~"}},
        {"segmentation": {"size": [H, W], "counts": [H * W]}},
        {"segmentation": SQUARE, "category_id": 9},
        {"segmentation": SQUARE, "image_id": 77},
        {"segmentation": 5},
    ]
    root = write(tmp_path / "in", document([{"segmentation": SQUARE}, *bad]))
    report = import_source(root, tmp_path / "out", ImportOptions())
    assert (report.images, report.masks, report.images_found) == (1, 1, 1)
    assert len(report.flaws) == len(bad)


def test_bad_images_are_reported(tmp_path):
    images = [
        {"id": 1, "file_name": "a.png", "height": H, "width": W},
        {"id": 2, "file_name": "missing.png"},
        {"id": 3, "file_name": "../images/a.png", "height": 1, "width": 1},
        {"id": 4, "file_name": "a.png"},
    ]
    root = write(tmp_path / "in", document([{"segmentation": SQUARE}], images))
    report = import_source(root, tmp_path / "out", ImportOptions())
    assert (report.images, report.images_found) == (1, 4)
    reasons = " ".join(reason for _, reason, _ in report.flaws)
    assert all(word in reasons for word in ("missing", "1 x 1", "no annotation"))


def test_the_file_name_gives_the_split(tmp_path):
    write(tmp_path / "in", document([{"segmentation": SQUARE}]), "instances_val2017.json")
    import_source(tmp_path / "in", tmp_path / "out", ImportOptions())
    (record,) = Index.open(tmp_path / "out")
    assert record.split == "val"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, W), st.integers(0, H)), min_size=2, max_size=2))
def test_a_rectangle_as_polygon_fills_its_pixels(corners):
    (x1, x2), (y1, y2) = (sorted(axis) for axis in zip(*corners, strict=True))
    filled = fill_polygons([[x1, y1, x2, y1, x2, y2, x1, y2]], H, W)
    expected = np.zeros((H, W), bool)
    expected[y1:y2, x1:x2] = True
    assert np.array_equal(filled, expected)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.lists(st.integers(-5, 5000), max_size=8), st.text(max_size=30), st.none()))
def test_run_lengths_of_any_content_give_a_mask_or_one_error(counts):
    with suppress(DataError):
        assert read_coco_rle({"size": [H, W], "counts": counts}, H, W).shape == (H, W)


def test_a_folder_without_any_format(tmp_path):
    with pytest.raises(DataError, match="none of the formats"):
        import_source(tmp_path, tmp_path / "out", ImportOptions())
