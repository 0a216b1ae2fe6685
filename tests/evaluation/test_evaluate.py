from __future__ import annotations

import json

import numpy as np
import pytest

from medisee.data.sa_med2d import Index
from medisee.errors import DataError
from medisee.evaluation import evaluate, make_pairs, predict, read_predictions, score
from medisee.evaluation.plain import category_means, centred_boxes, median_boxes, true_boxes
from medisee.structures import RefusalReason
from medisee.testing import FakeModel


class Counting(FakeModel):
    """Counts how often an image was opened; stops, as if killed, after `patience` images."""

    def __init__(self, patience=99, **more):
        super().__init__(**more)
        self.opened = []
        self.patience = patience

    def open(self, image):
        if len(self.opened) == self.patience:
            raise KeyboardInterrupt
        self.opened.append(image.source)
        return super().open(image)


def test_pairs(data, questions):
    pairs = make_pairs(Index.open(data), "test", questions)
    by_kind = {kind: [p for p in pairs if p.kind == kind] for kind in {p.kind for p in pairs}}
    assert {kind: len(found) for kind, found in by_kind.items()} == {
        "referring": 4,  # liver on two images, spleen, optic disc
        "implicit": 2,  # the pancreas is on no image
        "several": 1,
        "absent": 1 + 3,
    }
    assert by_kind["several"][0].labels == ("liver", "spleen")
    assert by_kind["absent"][0].labels == ()
    assert {p.reason for p in by_kind["absent"]} == {
        RefusalReason.NOT_IN_VIEW,
        RefusalReason.NOT_MEDICAL,
    }
    assert len({pair.id for pair in pairs}) == len(pairs)
    images = [pair.image for pair in pairs]
    assert images == sorted(images)  # those of one image together, in the order of the index


def test_pairs_are_limited_and_follow_the_seed(data, questions):
    index = Index.open(data)
    few = make_pairs(index, "test", questions, limit=1, seed=5)
    assert few == make_pairs(index, "test", questions, limit=1, seed=5)
    assert sum(pair.category == "liver" and pair.kind == "referring" for pair in few) == 1
    assert {p.kind for p in make_pairs(index, "test", questions, kinds=["absent"])} == {"absent"}


def test_bad_questions_are_named(data, tmp_path):
    index, path = Index.open(data), tmp_path / "questions.jsonl"
    for line in (
        "{",
        '{"id": 1, "kind": "riddle", "question": "?"}',
        '{"id": 1, "kind": "implicit"}',
        '{"id": 1, "kind": "implicit", "question": "?"}',
        '{"id": 1, "kind": "absent", "question": "?", "reason": "mood", "applies_to": {}}',
    ):
        path.write_text(line + "\n")
        with pytest.raises(DataError, match=r"questions.jsonl, line 1"):
            make_pairs(index, "test", path)
    with pytest.raises(DataError, match="cannot be read"):
        make_pairs(index, "test", tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="unknown kinds"):
        make_pairs(index, "test", kinds=["riddle"])
    with pytest.raises(DataError, match="nothing to ask"):
        make_pairs(index, "val")


def test_evaluate_writes_predictions_and_report(data, questions, tmp_path):
    report = evaluate(FakeModel(), data, "test", questions, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "predictions.jsonl",
        "report.json",
        "report.md",
    }
    entry = json.loads((tmp_path / "out/report.json").read_text())
    assert entry["pairs"] == len(report.rows) == 11
    assert entry["refusal"]["n_acc"] == 1.0 and entry["refusal"]["t_acc"] == 1.0
    assert entry["refusal"]["not_in_view"] == 1.0
    # The fake model calls everything a liver: right for two of the four.
    assert entry["kinds"]["referring"]["named"]["value"] == 0.5
    assert entry["category"]["implicit"]["liver"]["dice"]["n"] == 2
    assert entry["modality"]["referring"].keys() == {"CT", "fundus"}
    assert 0 < report.figures("referring")["dice"].value < 1
    assert "| referring | 4 |" in (tmp_path / "out/report.md").read_text()


def test_images_that_are_done_are_not_opened_again(data, tmp_path):
    stopped = Counting(patience=1)
    with pytest.raises(KeyboardInterrupt):
        evaluate(stopped, data, out=tmp_path)
    path = tmp_path / "predictions.jsonl"
    path.write_text(path.read_text() + '{"id": "half a li')
    again = Counting()
    report = evaluate(again, data, out=tmp_path)
    assert not set(stopped.opened) & set(again.opened)
    assert len(report.rows) == len(read_predictions(path)) == 4
    straight = evaluate(Counting(), data, out=tmp_path / "other")
    assert [row.overlap for row in straight.rows] == [row.overlap for row in report.rows]


def test_predictions_of_another_system_are_not_mixed(data, tmp_path):
    evaluate(FakeModel(), data, out=tmp_path)
    other = FakeModel()
    other.name = "other"
    with pytest.raises(DataError, match="another system"):
        evaluate(other, data, out=tmp_path)


def test_predictions_of_other_weights_are_not_mixed(data, tmp_path):
    model = FakeModel()
    model.folder = tmp_path / "model"
    model.folder.mkdir()
    (model.folder / "model.safetensors").write_bytes(b"first")
    evaluate(model, data, out=tmp_path / "out")
    evaluate(model, data, out=tmp_path / "out")
    (model.folder / "model.safetensors").write_bytes(b"second")
    with pytest.raises(DataError, match="other weights"):
        evaluate(model, data, out=tmp_path / "out")


def test_missing_predictions_are_an_error(data):
    index = Index.open(data)
    with pytest.raises(DataError, match="4 pairs have no prediction"):
        score("none", "test", index, make_pairs(index, "test"), {})


def figures(system, index, pairs, path):
    predict(system, index, pairs, path, explain=True)
    report = score(system.name, "test", index, pairs, read_predictions(path))
    return {name: figure.value for name, figure in report.figures("referring").items()}


def test_plain_comparisons(data, tmp_path):
    index = Index.open(data)
    pairs = make_pairs(index, "test")

    def fill(image, box):
        x1, y1, x2, y2 = map(int, box)
        mask = np.zeros((image.height, image.width), bool)
        mask[y1:y2, x1:x2] = True
        return mask

    true = figures(true_boxes(index, "test", pairs, fill), index, pairs, tmp_path / "t")
    assert true["dice"] == true["box_iou"] == 1.0 and true["named"] == 1.0
    mean = figures(category_means(index, pairs), index, pairs, tmp_path / "m")
    median = figures(median_boxes(index, pairs), index, pairs, tmp_path / "b")
    centred = figures(centred_boxes(pairs), index, pairs, tmp_path / "c")
    assert 0.8 < mean["dice"] < 1 and 0.8 < median["box_iou"] < 1
    assert centred["dice"] < median["dice"]
