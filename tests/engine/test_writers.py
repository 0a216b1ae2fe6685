from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from engine.scenes import ABDOMEN, CT, EYE, add_image, write_index

from medisee.data.mlmr_sd import check_records
from medisee.data.sa_med2d import Index
from medisee.engine import compose_records
from medisee.engine.rules import reserved_share
from medisee.entities import load_entities
from medisee.errors import DataError
from medisee.structures import RefusalReason

OPENINGS = {
    RefusalReason.NOT_IN_VIEW: "Nothing here matches: ",
    RefusalReason.WRONG_MODALITY: "This kind of image cannot show that: ",
    RefusalReason.NOT_MEDICAL: "That is not a question about a medical image: ",
    RefusalReason.UNCLEAR: "Please say what to look for: ",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    entries = [
        add_image(root, "a", ABDOMEN, split="train", **CT),
        add_image(root, "b", {"optic disc": (20, 30, 40, 50)}, split="train", **EYE),
        add_image(root, "c", ABDOMEN, split="val", **CT),
    ]
    return Index.open(write_index(root, entries))


@pytest.fixture(scope="module")
def records(index):
    return list(compose_records(index, load_entities(), "train", count=1500, seed=3))


def test_about_as_many_as_asked_and_every_kind(records):
    kinds = Counter(record.kind for record in records)
    assert 1300 <= len(records) <= 1500
    assert set(kinds) == {"referring", "implicit", "absent", "several", "round"}


def test_valid_against_the_images(index, records):
    assert check_records(records, index) == len(records)


def test_deterministic(index, records):
    again = list(compose_records(index, load_entities(), "train", count=1500, seed=3))
    other = list(compose_records(index, load_entities(), "train", count=1500, seed=4))
    assert again == records
    assert [r.question for r in other] != [r.question for r in records]


def test_implicit_questions_do_not_name_the_target(records):
    entities = load_entities()
    for record in records:
        if record.kind == "implicit":
            assert not entities[record.label].is_named_in(record.question), record.question


def test_referring_questions_name_the_target(records):
    named = [
        bool(load_entities()[record.label].is_named_in(record.question))
        for record in records
        if record.kind == "referring"
    ]
    assert np.mean(named) > 0.85  # the rest have a typo in the name; few images leave little else


def test_no_placeholder_is_left(records):
    for record in records:
        assert not re.search("[{}]", record.question + record.answer), record.question
        for earlier in record.history:
            assert not re.search("[{}]", earlier.question + earlier.answer)


def test_refusals_open_with_their_reason(records):
    seen = set()
    for record in records:
        if record.kind == "absent":
            assert record.answer.startswith(OPENINGS[record.refusal])
            seen.add(record.refusal)
        else:
            assert record.refusal is None
    assert seen == set(RefusalReason)


def test_answers_explain_each_target_in_order(records):
    entities = load_entities()
    for record in records:
        if record.kind != "absent":
            sentences = {s for t in record.targets for s in entities[t.label].explanation}
            rest = record.answer
            for target in record.targets:
                sentence = next(s for s in entities[target.label].explanation if rest.startswith(s))
                assert sentence in sentences
                rest = rest[len(sentence) :].lstrip()
            assert not rest


def test_no_question_twice_on_an_image(records):
    keys = [
        (r.image, *(h.question for h in r.history), r.question.lower().strip(" .?!"))
        for r in records
    ]
    assert len(set(keys)) == len(keys)


def test_rounds_have_a_history(records):
    rounds = [record for record in records if record.kind == "round"]
    assert rounds and all(record.history for record in rounds)
    for record in rounds:
        if re.search("other side|opposite side", record.question.lower()):
            assert record.label in ("left kidney", "right kidney")


def test_location_clues_are_true(records):
    """An independent reading of the clues, on boxes whose geometry is known."""
    checked = 0
    for record in records:
        if record.kind != "implicit" or record.perspective != "location":
            continue
        x1, y1, x2, y2 = record.box
        text = record.question.lower()
        if match := re.search(r"(upper|lower) (left|right)( part)? (of|of the|of this) ", text):
            assert ((y1 + y2) / 2 < 50) == (match[1] == "upper")
            assert ((x1 + x2) / 2 < 50) == (match[2] == "left")
            checked += 1
        if match := re.search(r"patient's (left|right) of the (liver|(?:left|right) kidney)", text):
            other = ABDOMEN[match[2]]
            assert (x1 > other[0]) == (match[1] == "left")
            checked += 1
        if match := re.search(r"\b(above|below|in front of|behind) the liver", text):
            # The liver lies above both kidneys in the picture, which is in front in an axial one.
            assert record.label in ("left kidney", "right kidney") and match[1] != "above"
            assert match[1] != "in front of"
            checked += 1
    assert checked > 20


def test_val_wordings_are_never_in_train(index, records):
    entities = load_entities()
    train_text = "\n".join(r.question.lower() for r in records)
    val = list(compose_records(index, entities, "val", count=300, seed=3))
    assert {r.image for r in val} == {"images/c.png"} and {r.split for r in val} == {"val"}
    for label in ABDOMEN:
        for sentence in reserved_share(entities[label].descriptions, "val"):
            assert sentence.lower() not in train_text
        for sentence in reserved_share(entities[label].questions, "val"):
            assert sentence.lower().rstrip("?.") not in train_text
    for record in val:
        if record.kind == "implicit":
            shown = entities[record.label]
            for sentence in (*shown.descriptions, *shown.questions):
                if sentence.lower().rstrip("?.") in record.question.lower():
                    reserved = reserved_share(shown.descriptions, "val")
                    assert sentence in (*reserved, *reserved_share(shown.questions, "val"))


def test_bad_requests(index):
    with pytest.raises(DataError, match="unknown kinds"):
        list(compose_records(index, load_entities(), mix={"rumour": 1.0}))
    with pytest.raises(DataError, match="no labelled image"):
        list(compose_records(index, load_entities(), split="test"))


def test_labels_without_knowledge_are_reported(index):
    entities = {name: e for name, e in load_entities().items() if name != "liver"}
    with pytest.warns(UserWarning, match="liver"):
        records = list(compose_records(index, entities, count=100))
    assert all(target.label != "liver" for record in records for target in record.targets)
