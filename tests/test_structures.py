"""Shared types: what they refuse, and that what they write can be read."""

from __future__ import annotations

import json

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from medisee.structures import (
    Answer,
    Finding,
    MedicalImage,
    Orientation,
    QARecord,
    RefusalReason,
    decode_rle,
    encode_rle,
)


def image(height: int = 6, width: int = 8, **changes) -> MedicalImage:
    fields = {
        "pixels": np.zeros((height, width), np.int16),
        "display": np.zeros((height, width, 3), np.uint8),
        "modality": "CT",
        "spacing": (2.0, 0.5),
        "orientation": Orientation("R", "A"),
        "source": "scan.dcm",
    }
    return MedicalImage(**{**fields, **changes})


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30)))
def test_rle_round_trip(mask):
    rle = encode_rle(mask)
    assert rle["size"] == list(mask.shape)
    assert rle["counts"].isascii()
    assert np.array_equal(decode_rle(json.loads(json.dumps(rle))), mask)


@pytest.mark.parametrize(
    ("left", "top", "plane", "patient_left"),
    [
        ("R", "A", "axial", "right"),
        ("L", "A", "axial", "left"),
        ("R", "H", "coronal", "right"),
        ("A", "H", "sagittal", None),
        ("P", "L", "axial", "top"),
        ("A", "R", "axial", "bottom"),
    ],
)
def test_orientation(left, top, plane, patient_left):
    orientation = Orientation(left, top)
    assert orientation.plane == plane
    assert orientation.patient_left == patient_left
    edges = {orientation.left, orientation.right, orientation.top, orientation.bottom}
    assert len(edges) == 4


@pytest.mark.parametrize("letters", [("R", "L"), ("A", "A"), ("S", "A"), ("R", "")])
def test_orientation_refuses(letters):
    with pytest.raises(ValueError, match=r"direction|axes"):
        Orientation(*letters)


def test_image_knows_its_size():
    assert (image(6, 8).height, image(6, 8).width) == (6, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"pixels": np.zeros(5)},
        {"pixels": np.zeros((6, 8, 4))},
        {"display": np.zeros((6, 8), np.uint8)},
        {"display": np.zeros((6, 8, 3), np.float32)},
        {"display": np.zeros((5, 8, 3), np.uint8)},
    ],
)
def test_image_refuses_other_shapes(changes):
    with pytest.raises(ValueError, match=r"pixels|display"):
        image(**changes)


@pytest.mark.parametrize(
    ("mask", "box", "score"),
    [
        (np.zeros((2, 2), np.uint8), (0, 0, 1, 1), 0.5),
        (np.zeros(4, bool), (0, 0, 1, 1), 0.5),
        (np.zeros((2, 2), bool), (0, 0, 1), 0.5),
        (np.zeros((2, 2), bool), (0, 0, 1, 1), 1.5),
        (np.zeros((2, 2), bool), (0, 0, 1, 1), float("nan")),
    ],
)
def test_finding_refuses(mask, box, score):
    with pytest.raises(ValueError, match="finding"):
        Finding(mask, box, score)


def test_answer_as_dict_is_plain_json():
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:6] = True
    finding = Finding(mask, (2.0, 1.0, 6.0, 3.0), np.float32(0.75), label="liver")
    answer = Answer("Where?", "There.", [finding], None, ["w"], image(), "nano", {"encode": 1.0})
    written = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    (found,) = written["findings"]
    assert found["area_px"] == 8
    assert found["area_mm2"] == 8.0  # 2.0 mm x 0.5 mm pixels
    assert found["box"] == [2, 1, 6, 3]
    assert np.array_equal(decode_rle(found["mask"]), mask)
    assert written["image"]["orientation"] == {"left": "R", "top": "A"}
    assert written["refusal"] is None


def test_refusal_as_dict():
    bare = image(spacing=None, orientation=None, modality=None)
    answer = Answer("Where?", "", [], RefusalReason.NOT_IN_VIEW, [], bare, "nano")
    written = answer.to_dict()
    assert written["refusal"] == "not_in_view"
    assert written["findings"] == []
    assert written["image"]["spacing_mm"] is written["image"]["orientation"] is None


TARGET = {"label": "liver", "masks": ["masks/a.png"], "box": [1, 2, 3, 4]}
RECORD = {"id": "1", "image": "images/a.png", "kind": "implicit", "question": "What makes bile?"}


def test_record_repeats_its_single_target():
    record = QARecord.model_validate({**RECORD, "targets": [TARGET], "pass": 2})
    line = json.loads(record.to_json())
    assert (line["label"], line["box"], line["pass"]) == ("liver", [1, 2, 3, 4], 2)
    assert QARecord.model_validate(line) == record


def test_record_with_several_targets_has_no_single_label():
    spleen = {**TARGET, "label": "spleen"}
    record = QARecord.model_validate({**RECORD, "kind": "several", "targets": [TARGET, spleen]})
    assert record.label is record.box is None


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": []},
        {"kind": "absent", "targets": [TARGET]},
        {"kind": "several", "targets": [TARGET]},
        {"targets": [TARGET], "label": "spleen"},
        {"targets": [TARGET], "box": [0, 0, 9, 9]},
        {"targets": [{**TARGET, "box": [3, 2, 1, 4]}]},
        {"targets": [{**TARGET, "box": [0, 0, "inf", 4]}]},
        {"targets": [{**TARGET, "masks": []}]},
        {"targets": [TARGET], "question": ""},
        {"targets": [TARGET], "surprise": 1},
        {"targets": [TARGET], "pass": 3},
    ],
)
def test_record_refuses(changes):
    with pytest.raises(pydantic.ValidationError):
        QARecord.model_validate({**RECORD, **changes})
