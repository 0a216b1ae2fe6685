from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from medisee.data.sa_med2d import ImageRecord, Index, MaskFile
from medisee.errors import DataError

STEM = "ct_00--demo--001"


def save_mask(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).convert("1").save(path)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((20, 30), 90, np.uint8)).save(tmp_path / f"images/{STEM}.png")
    first, second = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    first[2:5, 3:8] = True
    second[10:12, 20:25] = True
    save_mask(tmp_path / f"masks/{STEM}--0007_000.png", first)
    save_mask(tmp_path / f"masks/{STEM}--0007_001.png", second)
    pairs = {f"images/{STEM}.png": [f"masks/{STEM}--0007_00{n}.png" for n in (0, 1)]}
    (tmp_path / "SAMed2D_v1.json").write_text(json.dumps(pairs, indent=0))
    (tmp_path / "SAMed2D_v1_class_mapping_id.json").write_text('{"kidney": 7}')
    return tmp_path


def test_reads_the_layout_without_an_index(folder):
    (record,) = Index.open(folder)
    assert record.modality == "CT" and record.source == "demo" and record.split == ""
    assert record.labels == ("kidney",)
    assert len(record.files("kidney")) == 2


def test_reads_the_index_when_there_is_one(folder):
    entry = {
        "image": f"images/{STEM}.png",
        "modality": "MR-T1",
        "patient": "p1",
        "split": "train",
        "masks": [{"file": "masks/a.png", "label": "liver", "box": [1, 2, 3, 4]}],
    }
    (folder / "index.jsonl").write_text(json.dumps(entry) + "\n\n")
    (record,) = Index.open(folder).records("train")
    assert record.masks == (MaskFile("masks/a.png", "liver", (1.0, 2.0, 3.0, 4.0)),)
    assert record.modality == "MR-T1" and record.body_part == ""
    assert not list(Index.open(folder).records("test"))


def test_mask_is_the_union_of_instances(folder):
    index = Index.open(folder)
    (record,) = index
    mask = index.load_mask(record, "kidney")
    assert mask.shape == (20, 30) and mask.dtype == np.bool_
    assert mask.sum() == 3 * 5 + 2 * 5
    image = index.load_image(record)
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8


def test_a_large_file_is_streamed_over_chunk_borders(folder, monkeypatch):
    pairs = {
        f"images/ct_00--demo--{n}.png": [f"masks/ct_00--demo--{n}--0007_000.png"] for n in range(50)
    }
    (folder / "SAMed2D_v1.json").write_text(json.dumps(pairs))
    monkeypatch.setattr("medisee.data.sa_med2d._CHUNK", 37)
    assert [record.image for record in Index.open(folder)] == list(pairs)


@pytest.mark.parametrize(
    ("file", "text", "match"),
    [
        ("SAMed2D_v1.json", '{"images/x.png": ["masks/x--0007_0', "cut off"),
        ("SAMed2D_v1.json", "[1, 2]", "JSON object"),
        ("SAMed2D_v1.json", '{"images/x.png": ["masks/x--0009_000.png"]}', "class id 0009"),
        ("SAMed2D_v1.json", '{"images/x.png": ["masks/x.png"]}', "class id"),
        ("SAMed2D_v1_class_mapping_id.json", "[]", "must map"),
        ("index.jsonl", '{"image": "x"}\n', "line 1"),
        ("index.jsonl", "nonsense\n", "line 1"),
    ],
)
def test_broken_files_are_named(folder, file, text, match):
    (folder / file).write_text(text)
    with pytest.raises(DataError, match=match):
        list(Index.open(folder))


def test_what_cannot_be_used_is_given_as_its_error_and_the_rest_goes_on(folder):
    pairs = {"images/x.png": ["masks/x--0009_000.png", "masks/x--0007_000.png"]}
    (folder / "SAMed2D_v1.json").write_text(json.dumps(pairs))
    error, record = Index.open(folder).entries()
    assert "class id 0009" in str(error) and record.labels == ("kidney",)
    (folder / "index.jsonl").write_text('nonsense\n{"image": "y.png", "masks": []}\n')
    error, record = Index.open(folder).entries()
    assert "line 1" in str(error) and record.image == "y.png"


def test_missing_or_foreign_folder(tmp_path):
    with pytest.raises(DataError, match="no such"):
        Index.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="neither"):
        Index.open(tmp_path)


def test_broken_images_are_named(folder):
    index = Index.open(folder)
    (record,) = index
    (folder / record.image).write_bytes(b"\x89PNG not really")
    with pytest.raises(DataError, match="not a readable image"):
        index.load_image(record)
    with pytest.raises(DataError, match="missing"):
        index.load_image("images/none.png")
    with pytest.raises(DataError, match="no mask of 'liver'"):
        index.load_mask(record, "liver")
    save_mask(folder / record.masks[0].file, np.ones((3, 3), bool))
    with pytest.raises(DataError, match="another size"):
        index.load_mask(record, "kidney")


def test_labels_keep_their_order():
    masks = (MaskFile("a", "spleen"), MaskFile("b", "liver"), MaskFile("c", "spleen"))
    assert ImageRecord("x", masks).labels == ("spleen", "liver")


def test_shared_data_is_readable(shared):
    index = Index.open(shared / "data")
    record = next(index.records("train"))
    image = index.load_image(record)
    for label in record.labels:
        mask = index.load_mask(record, label)
        assert mask.shape == image.shape[:2] and mask.any()
