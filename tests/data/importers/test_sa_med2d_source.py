"""SA-Med2D-20M as a source: its names, its numbers for each source, its unions, its size."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from medisee.data.importers import ImportOptions, Selection, import_source
from medisee.data.importers import sa_med2d as module
from medisee.data.sa_med2d import ImageName, Index
from medisee.errors import DataError

LAYOUT = {  # image -> class id -> box; two sources number their classes each for itself
    "ct_00--KiTS--case_00056--x_0092": {"0000": (4, 4, 20, 20), "0002": (30, 4, 40, 20)},
    "ct_00--KiTS--case_00056--y_0040": {"0000": (4, 4, 20, 20)},
    "mr_t1--BraTS2021--BraTS2021_00218--z_0141": {"0000": (8, 8, 30, 30), "0011": (5, 5, 40, 40)},
    "mr_flair--BraTS2021--BraTS2021_00218--z_0141": {"0000": (8, 8, 30, 30)},
    "x_ray--covid_19_ct_cxr--16660_5_1--2d_none": {"0001": (2, 2, 20, 44)},
}
CLASSES = {
    "KiTS": {"kidney": "0000", "kidney_tumor": "0002"},
    "BraTS2021": {"peritumoral edema": "0000", "union_edema_core": "0011"},
    "covid_19_ct_cxr": {"left_lung": "0001"},
}
EVERYTHING = Selection(min_area=0, min_completeness=0)


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "SAMed2Dv1"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    pairs = {}
    for number, (stem, boxes) in enumerate(LAYOUT.items()):
        noise = np.random.default_rng(number).integers(0, 255, (48, 48)).astype(np.uint8)
        Image.fromarray(noise).save(root / f"images/{stem}.png")
        pairs[f"images/{stem}.png"] = [f"masks/{stem}--{k}_000.png" for k in boxes]
        for key, (x1, y1, x2, y2) in boxes.items():
            mask = np.zeros((48, 48), np.uint8)
            mask[y1:y2, x1:x2] = 255
            Image.fromarray(mask).save(root / f"masks/{stem}--{key}_000.png")
    (root / "SAMed2D_v1.json").write_text(json.dumps(pairs))
    (root / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(CLASSES))
    return root


def test_names_tell_modality_source_case_and_slice():
    assert ImageName.of("images/mr_t1ce--BraTS2021--B_00218--z_0141.png") == ImageName(
        "MR-T1Gd", "BraTS2021", "B_00218", "z_0141"
    )
    assert ImageName.of("x_ray--c--16660_5_1--2d_none.png") == ImageName(
        "X-ray", "c", "16660_5_1", ""
    )
    assert ImageName.of("ct_cbf--ISLES--1--x_1.png").modality == "CT"
    assert ImageName.of("us_00--busi--benign (1).png") == ImageName(
        "ultrasound", "busi", "benign (1)", ""
    )
    assert ImageName.of("plain.png") == ImageName()


def test_it_comes_in_with_its_names_modalities_and_patients(source, tmp_path):
    options = ImportOptions(selection=EVERYTHING, licence="CC BY-NC-SA 4.0")
    report = import_source(source, tmp_path / "out", options)
    assert report.format == "sa-med2d" and report.images == 5 and not report.flaws
    assert report.left_out_targets == {"class that puts others together": 1}
    assert report.categories == {
        "kidney": 2, "kidney tumor": 1, "peritumoral edema": 2, "left lung": 1,
    }  # fmt: skip
    records = list(Index.open(tmp_path / "out"))
    assert {r.modality for r in records} == {"CT", "MR-T1", "MR-FLAIR", "X-ray"}
    patients = {r.patient for r in records}
    assert patients == {
        "samed2dv1/KiTS/case_00056", "samed2dv1/BraTS2021/BraTS2021_00218", "",
    }  # fmt: skip
    assert len({r.split for r in records if "KiTS" in r.patient}) == 1
    line = json.loads((tmp_path / "out/index.jsonl").read_text().splitlines()[0])
    assert line["redistributable"] is True
    for record in records:
        for mask in record.masks:
            assert Index.open(tmp_path / "out").load_union([mask.file]).any()


def test_the_engine_reads_it_as_it_is_too(source):
    labels = {r.source: set(r.labels) for r in Index.open(source)}
    assert labels["covid_19_ct_cxr"] == {"left_lung"}
    assert labels["KiTS"] >= {"kidney"}


def test_every_entry_is_found_again_at_its_offset(source, monkeypatch):
    monkeypatch.setattr("medisee.data.sa_med2d._CHUNK", 70)
    monkeypatch.setattr("medisee.data.sa_med2d._ITEM", 16)
    pairs = json.loads((source / "SAMed2D_v1.json").read_text())
    pairs = {f"images/é{n}-{key[7:]}": value for n, (key, value) in enumerate(pairs.items())}
    for text in (
        json.dumps(pairs),
        json.dumps(pairs, indent=0, ensure_ascii=False),
        json.dumps(pairs, separators=(",", ":")).replace(",", "\r\n,"),
    ):
        (source / "SAMed2D_v1.json").write_bytes(text.encode())
        index = Index.open(source)
        found = [entry for offset, _ in index.offsets() for entry in index.at(offset)]
        assert found == list(index.entries()) and len(found) >= 5


def test_what_a_full_category_offers_is_not_opened(source, tmp_path, monkeypatch):
    opened = []
    load = module._load
    monkeypatch.setattr(module, "_load", lambda *a: (opened.append(a[1].image), load(*a))[1])
    rule = Selection(min_area=0, min_completeness=0, per_category=1)
    report = import_source(source, tmp_path / "out", ImportOptions(selection=rule))
    assert len(opened) < 5 and report.images_found == 5
    assert report.left_out_images["categories that have enough images"] == 5 - len(opened)
    assert all(count >= 1 for count in report.categories.values())


def test_units_follow_the_hash_and_a_changed_file_makes_its_own_anew(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TOGETHER", 1)
    options = ImportOptions(selection=EVERYTHING)
    whole = import_source(source, tmp_path / "whole", options)
    first = import_source(source, tmp_path / "twice", options)
    path = source / "masks" / "x_ray--covid_19_ct_cxr--16660_5_1--2d_none--0001_000.png"
    path.write_bytes(b"broken")
    again = import_source(source, tmp_path / "twice", options)
    assert whole.images == first.images == 5 and again.images == 4
    assert [reason for _, reason, what in again.flaws if what == "mask"] == [
        "is not a readable image"
    ]
    assert again.images_found == 5


def test_unknown_class_ids_are_told(source, tmp_path):
    (source / "SAMed2D_v1_class_mapping_id.json").write_text('{"KiTS": {"kidney": "0000"}}')
    report = import_source(source, tmp_path / "out", ImportOptions(selection=EVERYTHING))
    assert report.images == 2 and report.images_found == 5
    assert sum("not in the class mapping" in reason for _, reason, _ in report.flaws) == 5


def test_two_imports_into_one_folder_do_not_mix(source, tmp_path):
    from medisee.data.importers.lock import locked

    with locked(tmp_path / "out"), pytest.raises(DataError, match="another import"):
        import_source(source, tmp_path / "out", ImportOptions(selection=EVERYTHING))
    assert import_source(source, tmp_path / "out", ImportOptions(selection=EVERYTHING)).images == 5
