from __future__ import annotations

import random

import pytest
from engine.scenes import ABDOMEN

from medisee.data.sa_med2d import ImageRecord, MaskFile
from medisee.engine.clues import Shape
from medisee.engine.review import RULES, Reviewer
from medisee.engine.scene import Scene
from medisee.engine.vocabulary import hidden_name
from medisee.entities import load_entities
from medisee.structures import QARecord, QATarget

ANSWER = "The liver makes bile."
SIZE = 100


def shape(box):
    x1, y1, x2, y2 = box
    middle = ((x1 + x2) / 2, (y1 + y2) / 2)
    return Shape(tuple(map(float, box)), (x2 - x1) * (y2 - y1), middle, middle, SIZE, SIZE)


@pytest.fixture
def reviewer():
    image = ImageRecord(
        "images/a.png",
        tuple(MaskFile(f"{label}.png", label) for label in ABDOMEN),
        modality="CT",
        body_part="abdomen",
        plane="axial",
        split="train",
    )
    shapes = {label: shape(box) for label, box in ABDOMEN.items()}
    return Reviewer(Scene(image, shapes, load_entities(), {}, random.Random(0)))


def record(question, label="liver", answer=ANSWER, kind="implicit", **fields):
    target = QATarget(label=label, masks=[f"{label}.png"], box=ABDOMEN[label])
    fields = {"perspective": "attribute", "length": "short", **fields}
    return QARecord(
        id="1", image="images/a.png", kind=kind, targets=[target], question=question,
        answer=answer, **fields,
    )  # fmt: skip


@pytest.mark.parametrize(
    "question",
    [
        "Which organ here makes bile?",
        "show me the organ that makes bile",
        "Outline the largest gland of the body, please. Thanks!",
        "In the upper left of the scan: which organ makes bile?",
        "In front of the right kidney, which organ makes bile?",
        "On the patient's right of the left kidney: which organ makes bile?",
    ],
)
def test_good_records_pass(reviewer, question):
    location = " of the " in question and "bile?" in question and ":" in question
    perspective = "location" if location else "attribute"
    assert reviewer.accept(record(question, perspective=perspective)) is not None
    assert not reviewer.dropped


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        ("markup", record("Which <b>organ</b> here makes bile?")),
        ("markup", record("Which organ here makes bile? [SEG]")),
        ("patient details", record("Which organ of Mr. Smith here makes bile?")),
        ("patient details", record("Scan of 12.03.1961, which organ makes bile?")),
        ("patient details", record("Mail a.b@example.org which organ makes the bile?")),
        ("profanity", record("Which damn organ here makes the bile?")),
        ("length", record("What makes bile?")),
        ("length", record("Which organ here makes bile?", length="long")),
        ("form", record("the organ up there makes much bile")),
        ("answer", record("Which organ here makes bile?", answer="It's the liver.")),
        ("answer", record("Which organ here makes bile?", answer=" ".join(["liver"] * 41))),
        (
            "place",
            record(
                "Which organ here makes bile?",
                answer="The liver, in the lower right of the image, makes bile.",
            ),
        ),
        ("name", record("Which part here is called the liver?")),
        ("name", record("Which livers here are making bile?")),
        ("name", record("Which part is known as livver to us?")),
        ("name", record("Which hepatic parenchyma makes the bile?", label="liver")),
        ("name", record("Where is the kid ney on the left?", "left kidney", "The left kidney.")),
        ("answer", record("Which organ here makes bile?", answer="It is the spleen.")),
        ("answer", record("Which organ here makes bile?", answer="")),
        ("place", record("Which organ in the lower half of the scan makes bile?")),
        ("place", record("Behind the right kidney, which organ makes bile?")),
        ("place", record("Which organ, clearly smaller than the left kidney here, makes bile?")),
        ("place", record("Which organ here makes bile?", perspective="location")),
        ("laterality", record("On the patient's left of the left kidney, what makes bile?")),
        ("kind of image", record("Which organ on this ultrasound makes bile?", modality="CT")),
        ("kind of image", record("Which organ in the chest film makes bile?", modality="CT")),
        (
            "laterality",
            record(
                "Which bean on the patient's left?", "right kidney", "That is the right kidney."
            ),
        ),
    ],
)
def test_each_rule_drops_what_breaks_it_and_keeps_the_reason(reviewer, rule, bad):
    assert reviewer.accept(bad) is None
    (dropped,) = reviewer.dropped
    assert (dropped.rule, dropped.record.question) == (rule, bad.question)
    assert dropped.reason and reviewer.checked[rule] == 1


def test_words_for_the_image_in_hand_may_fit_it(reviewer):
    fits = record("Which organ on this abdominal CT makes bile?", modality="CT")
    knows = record("Find the organ that ultrasound screening of drinkers looks at.", modality="CT")
    assert reviewer.accept(fits) and reviewer.accept(knows)


def test_a_reason_never_repeats_a_patients_details(reviewer):
    reviewer.accept(record("Which organ of Mr. Smith here makes bile?"))
    assert "Smith" not in reviewer.dropped[0].reason


def test_repetition(reviewer):
    long = "Before my appointment I want to find the big gland that makes bile. Where do I look"
    assert reviewer.accept(record("Which organ here makes bile?"))
    assert reviewer.accept(record(f"{long}?", length="long"))
    assert reviewer.accept(record("which organ here, makes bile")) is None
    assert reviewer.accept(record(f"{long} now?", length="long")) is None
    assert [dropped.rule for dropped in reviewer.dropped] == ["repetition", "repetition"]


def test_spacing_and_quotes_are_mended(reviewer):
    mended = reviewer.accept(record("Which  organ\there makes \u2018bile\u2019 ?"))
    assert mended.question == "Which organ here makes 'bile'?"
    assert reviewer.mended["spacing"] == 1 and reviewer.checked["spacing"] == 1


def test_referring_questions_may_name_and_be_brief(reviewer):
    named = record("Liver", kind="referring", perspective=None)
    assert reviewer.accept(named) is not None


def test_every_rule_is_counted_once_a_record(reviewer):
    reviewer.accept(record("Which organ here makes bile?"))
    assert {name: reviewer.checked[name] for name in RULES} == dict.fromkeys(RULES, 1)


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("pancreas", "show the pancraes"),
        ("pancreas", "show the pan creas"),
        ("pancreas", "the pancreatic duct"),
        ("gallbladder", "the gall-bladder"),
        ("spleen", "where are the spleens"),
        ("left ventricle of heart", "the leftventricle"),
        ("esophagus", "the oesophagus"),
        ("stomach", "the stomac"),
    ],
)
def test_names_are_found_however_they_are_written(label, text):
    assert hidden_name(text, load_entities()[label])


def test_curated_sentences_hide_no_name():
    for entity in load_entities().values():
        for text in (*entity.descriptions, *entity.questions):
            assert hidden_name(text, entity) is None, (entity.name, text)
