"""The plain comparisons behave as what they are: ceilings, floors, and honest readers."""

from __future__ import annotations

import numpy as np
import pytest

from medisee.data.sa_med2d import Index
from medisee.evaluation import Selection, evaluate, make_pairs
from medisee.evaluation.systems import Setup, make_system, plain
from medisee.evaluation.systems.common import filled_box


@pytest.fixture
def setup(data, questions):
    index = Index.open(data)
    return Setup(index, "test", make_pairs(index, Selection(questions=questions)))


def figures(system, setup, questions, folder):
    report = evaluate(lambda: system, setup.index, Selection(questions=questions), folder)
    return {name: figure.value for name, figure in report.figures("referring").items()}, report


def test_ceiling_and_floors(setup, questions, tmp_path):
    true, report = figures(
        plain.with_true_boxes(setup, filled_box), setup, questions, tmp_path / "t"
    )
    assert true["dice"] == true["box_iou"] == 1.0 and true["named"] == 1.0
    assert report.refusal()["n_acc"] == 1.0
    mean, _ = figures(make_system("category-mean", setup, {}), setup, questions, tmp_path / "m")
    median, _ = figures(make_system("median-box", setup, {}), setup, questions, tmp_path / "b")
    centred, _ = figures(make_system("centred-box", setup, {}), setup, questions, tmp_path / "c")
    assert 0.8 < mean["dice"] < 1 and 0.8 < median["box_iou"] < 1
    assert centred["dice"] < median["dice"]


class Listening:
    """Keeps the words that it was asked."""

    name = "listening"

    def __init__(self):
        self.heard = []

    def open(self, image):
        return self

    def ask(self, question, explain=True):
        self.heard += question
        return []


@pytest.fixture
def listening(monkeypatch):
    model = Listening()
    monkeypatch.setattr(plain, "_load", lambda name, setup: model)
    return model


def test_shuffled_asks_the_same_questions_elsewhere(setup, listening):
    asked = [pair.question for pair in setup.pairs]
    make_system("shuffled", setup, {"model": "x"}).open(None).ask(asked)
    assert set(listening.heard) <= set(asked) and listening.heard != asked


def test_retrieval_names_what_is_described(setup, listening, questions):
    system = plain.retrieval(setup, "x")
    nearest = plain._Nearest(list(plain.load_entities().values()))
    assert nearest("Which organ makes bile and suffers from hepatitis?").name == "liver"
    system.open(None).ask([setup.pairs[0].question])
    assert listening.heard[0].startswith("Segment the ")
    assert np.isfinite(nearest._vectors).all()
