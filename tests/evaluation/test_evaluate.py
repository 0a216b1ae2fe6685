from __future__ import annotations

import json

import pytest

from medisee.data.mlmr_sd import write_records
from medisee.data.sa_med2d import Index
from medisee.errors import DataError
from medisee.evaluation import Selection, evaluate, make_pairs
from medisee.evaluation.predictions import read_lines
from medisee.structures import QARecord, QATarget, RefusalReason
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


def run(model, data, out, questions=None, **more):
    """Evaluates a model that is there already."""
    index = Index.open(data)
    return evaluate(lambda: model, index, Selection(questions=questions), out, **more)


def test_pairs(data, questions):
    pairs = make_pairs(Index.open(data), Selection(questions=questions))
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
    index, selection = Index.open(data), Selection(questions=questions, limit=1, seed=5)
    few = make_pairs(index, selection)
    assert few == make_pairs(index, selection)
    assert sum(pair.category == "liver" and pair.kind == "referring" for pair in few) == 1
    absent = Selection(questions=questions, kinds=("absent",))
    assert {p.kind for p in make_pairs(index, absent)} == {"absent"}


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
            make_pairs(index, Selection(questions=path))
    with pytest.raises(DataError, match="cannot be read"):
        make_pairs(index, Selection(questions=tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="unknown kinds"):
        make_pairs(index, Selection(kinds=("riddle",)))
    with pytest.raises(DataError, match="nothing to ask"):
        make_pairs(index, Selection("val"))


def test_evaluate_writes_predictions_and_report(data, questions, tmp_path):
    report = run(FakeModel(), data, tmp_path / "out", questions)
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
        run(stopped, data, tmp_path)
    path = tmp_path / "predictions.jsonl"
    path.write_text(path.read_text() + '{"id": "half a li')
    again = Counting()
    report = run(again, data, tmp_path)
    assert not set(stopped.opened) & set(again.opened)
    assert len(report.rows) == len(list(read_lines(path))) == 4
    straight = run(Counting(), data, tmp_path / "other")
    assert [row.overlap for row in straight.rows] == [row.overlap for row in report.rows]


def test_predictions_of_another_system_are_not_mixed(data, tmp_path):
    run(FakeModel(), data, tmp_path)
    other = FakeModel()
    other.name = "other"
    with pytest.raises(DataError, match="another system"):
        run(other, data, tmp_path)


def test_predictions_of_other_weights_are_not_mixed(data, tmp_path):
    model = FakeModel()
    model.folder = tmp_path / "model"
    model.folder.mkdir()
    (model.folder / "model.safetensors").write_bytes(b"first")
    run(model, data, tmp_path / "out")
    (model.folder / "targets.json").write_text("{}")  # figures, written after the test
    run(model, data, tmp_path / "out")
    (model.folder / "model.safetensors").write_bytes(b"second")
    with pytest.raises(DataError, match="other weights"):
        run(model, data, tmp_path / "out")


def test_answers_to_other_questions_are_not_mixed(data, questions, tmp_path):
    run(FakeModel(), data, tmp_path)
    with pytest.raises(DataError, match="other questions"):
        run(FakeModel(), data, tmp_path, questions)


def test_earlier_rounds_are_asked_first_in_a_session_of_their_own(data, tmp_path):
    model, index = Remembering(), Index.open(data)
    path = tmp_path / "set.jsonl"
    write_records(path, [record(index, "test-a", "one"), record(index, "test-a", "two", "before")])
    report = run(model, data, tmp_path / "out", path)
    assert sorted(model.sessions) == [["before", "two"], ["one"]]
    assert [(row.pair.kind, row.pair.length) for row in report.rows] == [
        ("implicit", "long"),
        ("round", "short"),
    ]
    assert report.by("perspective", "implicit").keys() == {"location"}
    assert report.by("length", "round").keys() == {"short"}


def test_a_record_set_is_asked_as_it_is(data, tmp_path):
    index, path = Index.open(data), tmp_path / "set.jsonl"
    write_records(path, [record(index, "test-a", "one")])
    [pair] = make_pairs(index, Selection(questions=path))
    assert pair.masks == ("masks/test-a--0000_000.png",) and pair.labels == ("liver",)
    elsewhere = record(index, "train-a", "one").model_copy(update={"split": "test"})
    write_records(path, [elsewhere])
    with pytest.raises(DataError, match="has no image"):
        make_pairs(index, Selection(questions=path))


def record(index, image, question, *earlier):
    """About the liver of an image; with earlier rounds it is a round."""
    found = next(each for each in index if each.image == f"images/{image}.png")
    target = QATarget(label="liver", masks=list(found.files("liver")), box=(5, 5, 25, 35))
    return QARecord(
        id=question, image=found.image, kind="round" if earlier else "implicit",
        targets=[target], question=question, split=found.split, perspective="location",
        length=None if earlier else "long",
        history=[{"question": text, "answer": ""} for text in earlier],
    )  # fmt: skip


class Remembering(FakeModel):
    """Keeps what was asked in each session."""

    def __init__(self):
        super().__init__()
        self.sessions = []

    def open(self, image):
        session = super().open(image)
        self.sessions.append(session.asked)
        return session


@pytest.mark.slow
def test_workers_give_the_same(data, tmp_path):
    index, selection = Index.open(data), Selection()
    one = evaluate(FakeModel, index, selection, tmp_path / "one")
    two = evaluate(FakeModel, index, selection, tmp_path / "two", workers=2)
    assert [row.overlap for row in one.rows] == [row.overlap for row in two.rows]
