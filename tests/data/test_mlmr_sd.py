from __future__ import annotations

import pytest

from medisee.data.mlmr_sd import check_records, read_records, write_records
from medisee.data.sa_med2d import ImageRecord, MaskFile
from medisee.errors import DataError
from medisee.structures import QARecord, QATarget, RefusalReason

IMAGES = [
    ImageRecord("images/a.png", (MaskFile("masks/a.png", "liver"),), patient="p1", split="train"),
    ImageRecord("images/b.png", (MaskFile("masks/b.png", "liver"),), patient="p2", split="val"),
]


def record(name="1", image="images/a.png", mask="masks/a.png", split="train", **more):
    target = QATarget(label=more.pop("label", "liver"), masks=[mask], box=(1, 2, 5, 6))
    fields = {"kind": "implicit", "question": "Where is bile made?", "targets": [target], **more}
    return QARecord(id=name, image=image, split=split, **fields)


def test_round_trip(tmp_path):
    absent = QARecord(
        id="2", image="images/a.png", kind="absent", question="Liver?", refusal="not_in_view"
    )
    path = tmp_path / "work" / "train.jsonl"
    assert write_records(path, [record(), absent]) == 2
    first, second = read_records(path)
    assert first == record()
    assert second.refusal is RefusalReason.NOT_IN_VIEW and second.targets == []


def test_a_failed_write_leaves_nothing(tmp_path):
    def failing():
        yield record()
        raise DataError("broken source")

    with pytest.raises(DataError, match="broken source"):
        write_records(tmp_path / "train.jsonl", failing())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["{", '{"id": "1"}', '{"id": "1", "nonsense": 2}'])
def test_bad_lines_are_named(tmp_path, line):
    path = tmp_path / "train.jsonl"
    path.write_text(record().to_json() + "\n" + line + "\n")
    with pytest.raises(DataError, match=r"train.jsonl, line 2"):
        list(read_records(path))


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        list(read_records(tmp_path / "none.jsonl"))


def test_check_accepts_what_fits():
    second = record("2", "images/b.png", "masks/b.png", "val")
    assert check_records([record(), second], IMAGES) == 2


@pytest.mark.parametrize(
    ("records", "match"),
    [
        ([record(), record()], "twice"),
        ([record(image="images/c.png")], "no image"),
        ([record(mask="masks/b.png")], "no such mask"),
        ([record(label="spleen")], "no such mask"),
        ([record(split="test")], "is in 'test'"),
    ],
)
def test_check_finds_what_does_not(records, match):
    with pytest.raises(DataError, match=match):
        check_records(records, IMAGES)


def test_check_finds_a_patient_in_two_splits():
    images = [ImageRecord(i.image, i.masks, patient="p1") for i in IMAGES]
    second = record("2", "images/b.png", "masks/b.png", "val")
    with pytest.raises(DataError, match="two splits"):
        check_records([record(), second], images)
