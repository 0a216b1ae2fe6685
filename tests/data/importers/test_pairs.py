"""Image/mask pairs: what comes out, what is reported, and that nothing vanishes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from medisee.data.importers import ImportOptions, Selection, import_source
from medisee.data.sa_med2d import Index
from medisee.errors import DataError

CLASSES = {"1": "liver", "2": "Kidney_Left", "3": None}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def picture(seed=0, size=(40, 48)):
    return np.random.default_rng(seed).integers(0, 255, size).astype(np.uint8)


def mask(value=1, size=(40, 48)):
    array = np.zeros(size, np.uint8)
    array[5:15, 8:20] = value
    return array


def pair(root, stem, values, **size):
    save(root / "images" / f"{stem}.png", picture(**size))
    save(root / "masks" / f"{stem}.png", values)


def test_values_become_classes(tmp_path):
    values = mask(1)
    values[20:30, 30:40] = 2
    values[34:38, 2:40] = 3
    pair(tmp_path / "in", "a", values)
    report = import_source(tmp_path / "in", tmp_path / "out", ImportOptions(classes=CLASSES))
    assert (report.images, report.masks, report.flaws) == (1, 2, [])
    (record,) = Index.open(tmp_path / "out")
    assert record.labels == ("liver", "left kidney")
    assert record.source == "in"
    data = Index.open(tmp_path / "out")
    assert np.array_equal(data.load_mask(record, "left kidney"), values == 2)
    assert np.array_equal(data.load_image(record)[..., 0], picture())
    assert record.masks[0].box == (8, 5, 20, 15)


def test_without_the_index_sa_med2ds_own_files_say_the_same(tmp_path):
    pair(tmp_path / "in", "a", mask(2))
    options = ImportOptions(classes=CLASSES, modality="CT")
    import_source(tmp_path / "in", tmp_path / "out", options)
    (full,) = Index.open(tmp_path / "out")
    (tmp_path / "out" / "index.jsonl").unlink()
    (plain,) = Index.open(tmp_path / "out")
    assert plain.image == full.image == "images/ct_00--in--a.png"
    assert [(m.file, m.label) for m in plain.masks] == [(m.file, m.label) for m in full.masks]
    assert (plain.modality, plain.source) == ("CT", "in")


def test_one_class_a_folder_and_given_splits(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / "in" / split / "images" / "a.png", picture())
        save(tmp_path / "in" / split / "masks" / "left lung" / "a.png", mask(255))
        save(tmp_path / "in" / split / "masks" / "heart" / "a.png", mask(255)[::-1].copy())
    import_source(tmp_path / "in", tmp_path / "out", ImportOptions())
    records = list(Index.open(tmp_path / "out"))
    assert sorted(r.split for r in records) == ["train", "val"]
    assert {r.labels for r in records} == {("heart", "left lung")}


def broken(root):
    """Nine images, of which two can be used, and a mask without an image."""
    pair(root, "good", mask(1))
    pair(root, "partly", mask(1) + np.pad(mask(9)[:30], ((10, 0), (0, 0))))
    pair(root, "empty", mask(0))
    pair(root, "unknown", mask(7))
    pair(root, "size", mask(1)[:-1])
    pair(root, "colour", np.stack([mask(1), mask(2), mask(0)], -1))
    pair(root, "broken-mask", mask(1))
    (root / "masks" / "broken-mask.png").write_bytes(b"\x89PNG\r\n\x1a\n nonsense")
    pair(root, "broken-image", mask(1))
    path = root / "images" / "broken-image.png"
    path.write_bytes(path.read_bytes()[:200])
    save(root / "images" / "alone.png", picture())
    save(root / "masks" / "lost.png", mask(1))
    return root


def test_bad_input_is_reported_by_file_and_never_vanishes(tmp_path):
    root = broken(tmp_path / "in")
    report = import_source(root, tmp_path / "out", ImportOptions(classes=CLASSES))
    assert report.images == 2
    assert report.images_found == len(list((root / "images").iterdir()))
    assert sum(report.left_out_images.values()) == 0
    flaws = {(file, what): reason for file, reason, what in report.flaws}
    assert "empty" in flaws["masks/empty.png", "mask"]
    assert "class id 7" in flaws["masks/unknown.png", "mask"]
    assert "class id 9" in flaws["masks/partly.png", "mask"]
    assert "48 x 39" in flaws["masks/size.png", "mask"]
    assert "colour" in flaws["masks/colour.png", "mask"]
    assert "damaged" in flaws["masks/broken-mask.png", "mask"]
    assert "damaged" in flaws["images/broken-image.png", "image"]
    assert "no mask" in flaws["images/alone.png", "image"]
    assert "no image" in flaws["masks/lost.png", "mask"]
    written = json.loads((tmp_path / "out/work/import-in.json").read_text())
    assert written == report.to_dict()
    assert written["images_found"] == 9


def test_two_images_of_one_name(tmp_path):
    pair(tmp_path / "in", "a", mask(1))
    save(tmp_path / "in" / "images" / "a.bmp", picture(1))
    report = import_source(tmp_path / "in", tmp_path / "out", ImportOptions(label="liver"))
    assert report.images == 1
    assert [(file, what) for file, _, what in report.flaws] == [("images/a.png", "image")]


def test_a_lossy_mask_is_cut_at_the_middle_and_holds_no_values(tmp_path):
    save(tmp_path / "in" / "images" / "a.png", picture())
    save(tmp_path / "in" / "masks" / "a.jpg", mask(255))
    import_source(tmp_path / "in", tmp_path / "one", ImportOptions(label="polyp"))
    (record,) = Index.open(tmp_path / "one")
    found = Index.open(tmp_path / "one").load_mask(record, "polyp")
    assert (found ^ (mask() > 0)).mean() < 0.01
    report = import_source(tmp_path / "in", tmp_path / "many", ImportOptions(classes=CLASSES))
    assert "JPEG" in report.flaws[0][1]


def test_masks_need_a_class(tmp_path):
    pair(tmp_path / "in", "a", mask(1))
    with pytest.raises(DataError, match="--label"):
        import_source(tmp_path / "in", tmp_path / "out", ImportOptions())


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (Selection(min_area=0.5), "smaller"),
        (Selection(max_area=0.01), "larger"),
        (Selection(min_contrast=255), "contrast"),
    ],
)
def test_the_rule_leaves_out_and_says_why(tmp_path, rule, reason):
    pair(tmp_path / "in", "a", mask(1))
    options = ImportOptions(label="liver", selection=rule)
    report = import_source(tmp_path / "in", tmp_path / "out", options)
    assert report.images == 0
    assert report.images_found == 1
    assert any(reason in text for text in [*report.left_out_images, *report.left_out_targets])


def test_each_category_is_capped(tmp_path):
    for number in range(6):
        pair(tmp_path / "in", f"liver{number}", mask(1), seed=number)
    pair(tmp_path / "in", "kidney", mask(2))
    options = ImportOptions(classes=CLASSES, selection=Selection(per_category=2))
    report = import_source(tmp_path / "in", tmp_path / "out", options)
    assert report.categories == {"liver": 2, "left kidney": 1}
    assert report.left_out_images == {"categories that have enough images": 4}


def test_patient_and_licence_come_from_the_options(tmp_path):
    for visit in "abc":
        pair(tmp_path / "in", f"p7_{visit}", mask(1))
    options = ImportOptions(label="liver", patient="^(p[0-9]+)_", licence="CC BY 4.0")
    report = import_source(tmp_path / "in", tmp_path / "out", options)
    records = list(Index.open(tmp_path / "out"))
    assert {r.patient for r in records} == {"in/p7"}
    assert len({r.split for r in records}) == 1
    assert report.licences == {"CC BY 4.0": 3}
