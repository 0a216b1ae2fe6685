"""From a model folder and an image to answers: sessions, streams, warnings and errors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import save_nano, tiny_nano

import medisee
from medisee.calibration import Calibration
from medisee.categories import Categories
from medisee.errors import InputError, ModelError
from medisee.familiarity import Familiarity
from medisee.io import read_image
from medisee.predictor import NO_ORIENTATION, NOT_ENGLISH, UNFAMILIAR, label_findings
from medisee.structures import Answer, Finding, Orientation, RefusalReason

ALWAYS, NEVER = None, -1.0
"""Values of `refuse_above`: every question is answered, or none."""

PICTURE = np.random.default_rng(0).integers(0, 256, (50, 80), dtype=np.uint8)
QUESTIONS = ["Which part makes bile?", "Where is the spleen?", "And the largest organ here?"]


def with_calibration(folder, refuse_above):
    calibration = Calibration("isotonic", (0.0, 1.0), (0.0, 1.0), refuse_above)
    calibration.save(folder / "calibration.json")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny nano that answers every question."""
    made = save_nano(tmp_path_factory.mktemp("models") / "tiny", box_decoder="grounded")
    return with_calibration(made, ALWAYS)


@pytest.fixture(scope="module")
def model(folder):
    return medisee.load(str(folder), device="cpu")


@pytest.fixture(scope="module")
def refusing(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("models") / "refusing"
    shutil.copytree(folder, copy)
    return medisee.load(str(with_calibration(copy, NEVER)))


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder that a test may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def assert_same(first, second):
    assert first.text == second.text
    assert first.refusal == second.refusal
    assert len(first.findings) == len(second.findings)
    for one, other in zip(first.findings, second.findings, strict=True):
        np.testing.assert_allclose(one.similarity, other.similarity, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(one.box, other.box, atol=0.05)
        assert one.score == pytest.approx(other.score, abs=1e-2)
        assert (one.mask != other.mask).mean() < 2e-3
        assert one.label == other.label


# ---- answers -------------------------------------------------------------------------------------


def test_an_answer_has_everything(model):
    answer = model.open(PICTURE).ask(QUESTIONS[0])
    assert isinstance(answer, Answer)
    assert answer.question == QUESTIONS[0]
    assert answer.refusal is None
    assert answer.text
    assert 1 <= len(answer.findings) <= 8
    assert answer.seconds.keys() == {"encode", "perceive", "explain"}
    for finding in answer.findings:
        assert finding.mask.shape == (50, 80)
        assert 0 <= finding.score <= 1
        assert finding.similarity.shape == (4, 4)
        x1, y1, x2, y2 = finding.box
        assert 0 <= x1 <= x2 <= 80
        assert 0 <= y1 <= y2 <= 50
    assert json.loads(json.dumps(answer.to_dict()))["question"] == QUESTIONS[0]


def test_many_questions_equal_each_alone(model):
    together = model.open(PICTURE).ask(QUESTIONS)
    assert [answer.question for answer in together] == QUESTIONS
    for question, answer in zip(QUESTIONS, together, strict=True):
        assert_same(answer, model.open(PICTURE).ask(question))


def test_different_questions_and_images_get_different_answers(model):
    first, second = model.open(PICTURE).ask(QUESTIONS[:2], explain=False)
    third = model.open(255 - PICTURE).ask(QUESTIONS[0], explain=False)
    for other in (second, third):
        assert not np.allclose(similarity(first), similarity(other), atol=0.01)


def test_no_question_gives_no_answer(model):
    assert model.open(PICTURE).ask([]) == []


def test_without_explanation_no_word_is_decoded(model, monkeypatch):
    def explain(*_):
        raise AssertionError("a word was decoded")

    session = model.open(PICTURE)
    explained = session.ask(QUESTIONS[0])
    monkeypatch.setattr(type(model.runtime), "explain", explain)
    answer = model.open(PICTURE).ask(QUESTIONS[0], explain=False)
    assert answer.text == ""
    assert "explain" not in answer.seconds
    assert all(finding.label is None for finding in answer.findings)
    np.testing.assert_allclose(answer.findings[0].box, explained.findings[0].box, atol=1e-3)


def test_a_session_encodes_its_image_once(model, monkeypatch):
    calls, encode = [], type(model.runtime).encode
    monkeypatch.setattr(
        type(model.runtime), "encode", lambda *a, **k: calls.append(1) or encode(*a, **k)
    )
    session = model.open(PICTURE)
    for question in QUESTIONS:
        session.ask(question)
    assert len(calls) == 1


def test_every_kind_of_image_source(model, tmp_path):
    from PIL import Image

    file = tmp_path / "scan.png"
    Image.fromarray(PICTURE).save(file)
    expected = model.open(PICTURE).ask(QUESTIONS[0], explain=False)
    for source in (file, str(file), file.read_bytes(), Image.open(file), read_image(file)):
        assert_same(model.open(source).ask(QUESTIONS[0], explain=False), expected)


def test_the_device_and_runtime_that_are_named_are_used(folder):
    loaded = medisee.load(str(folder), device="cpu", runtime="torch")
    assert loaded.runtime.model.device == torch.device("cpu")
    assert loaded.name == str(folder)
    assert loaded.info["targets"] == []


# ---- rounds --------------------------------------------------------------------------------------


def similarity(answer):
    return answer.findings[0].similarity


def test_earlier_rounds_are_read_along(model):
    session = model.open(PICTURE)
    fresh = session.ask(QUESTIONS[1], explain=False)
    session.ask(QUESTIONS[0])
    later = session.ask(QUESTIONS[1], explain=False)
    assert not np.allclose(similarity(fresh), similarity(later), atol=1e-3)
    assert len(session.rounds) == 1
    assert session.rounds[0][0] == QUESTIONS[0]


def test_questions_of_one_call_do_not_know_of_each_other(model):
    session = model.open(PICTURE)
    both = session.ask(QUESTIONS[:2])
    assert_same(both[1], model.open(PICTURE).ask(QUESTIONS[1]))
    assert [question for question, _ in session.rounds] == QUESTIONS[:2]


def test_masks_alone_are_no_round(model):
    session = model.open(PICTURE)
    first = session.ask(QUESTIONS[0], explain=False)
    assert session.rounds == []
    assert_same(session.ask(QUESTIONS[0], explain=False), first)


def test_only_the_last_two_rounds_are_read(model):
    long, short = model.open(PICTURE), model.open(PICTURE)
    long.rounds = [("a?", "b"), ("c?", "d"), ("e?", "f")]
    short.rounds = long.rounds[1:]
    assert_same(long.ask(QUESTIONS[0], explain=False), short.ask(QUESTIONS[0], explain=False))


# ---- streams -------------------------------------------------------------------------------------


def test_a_stream_yields_the_findings_first_and_then_the_words(model):
    asked = model.open(PICTURE).ask(QUESTIONS[0])
    session = model.open(PICTURE)
    stream = session.stream(QUESTIONS[0])
    answer = next(stream)
    assert isinstance(answer, Answer)
    assert answer.text == ""
    assert len(answer.findings) == len(asked.findings)
    assert session.rounds == []
    pieces = list(stream)
    assert pieces
    assert all(isinstance(piece, str) and piece for piece in pieces)
    assert "".join(pieces) == answer.text
    assert_same(answer, asked)
    assert session.rounds == [(QUESTIONS[0], answer.text)]


def test_characters_of_several_bytes_are_never_cut(model, monkeypatch):
    text = "Ü é \U0001f9e0 end"
    ids = model.processor.encode_text(text)
    assert len(ids) > len(text)
    monkeypatch.setattr(type(model.runtime), "explain", lambda *_: iter(ids))
    answer, *pieces = model.open(PICTURE).stream(QUESTIONS[0])
    assert "".join(pieces) == answer.text == text
    assert not any("\ufffd" in piece for piece in pieces)


OPENINGS = {
    RefusalReason.NOT_IN_VIEW: "Nothing",
    RefusalReason.WRONG_MODALITY: "This",
    RefusalReason.NOT_MEDICAL: "That",
    RefusalReason.UNCLEAR: "Please",
}


# ---- refusals ------------------------------------------------------------------------------------


def test_a_refusal_has_a_reason_words_and_no_finding(refusing):
    answer = refusing.open(PICTURE).ask(QUESTIONS[0])
    assert answer.findings == []
    assert isinstance(answer.refusal, RefusalReason)
    assert answer.text.startswith(OPENINGS[answer.refusal])
    assert answer.to_dict()["refusal"] == answer.refusal.value


def test_a_refusal_without_words_keeps_its_reason(refusing):
    explained = refusing.open(PICTURE).ask(QUESTIONS[0])
    answer = refusing.open(PICTURE).ask(QUESTIONS[0], explain=False)
    assert answer.refusal is explained.refusal
    assert answer.text == ""


def test_a_stream_of_a_refusal(refusing):
    answer, *pieces = refusing.open(PICTURE).stream(QUESTIONS[0])
    assert answer.findings == []
    assert "".join(pieces) == answer.text != ""


# ---- labels --------------------------------------------------------------------------------------


def found(count):
    mask = np.zeros((4, 4), bool)
    return [Finding(mask, (0, 0, 1, 1), 0.5)] * count


@pytest.mark.parametrize(
    "count, text, labels",
    [
        (1, "The liver is a large organ. It lies beside the stomach.", ["liver"]),
        (2, "The liver makes bile. The spleen filters blood.", ["liver", "spleen"]),
        (2, "The liver makes bile.", ["liver", None]),
        (1, "Something without a name.", [None]),
        (0, "Nothing like the liver is in view.", []),
    ],
)
def test_findings_take_the_names_of_the_explanation(count, text, labels):
    assert [finding.label for finding in label_findings(found(count), text)] == labels


ANSWERS = {
    "liver": ["The liver makes bile.", "The liver is a large organ."],
    "spleen": ["The spleen filters blood.", "The spleen can swell."],
}
REFUSALS = ["Nothing is here.", "This cannot show it.", "That is odd.", "Please say more."]


def with_words(folder, answers=None):
    """A model that names its targets by their states and speaks by the book."""
    states = np.random.default_rng(0).standard_normal((2, 2, 32)).astype(np.float32)
    Categories(["liver", "spleen"], states).save(folder)
    phrases = {"answers": ANSWERS if answers is None else answers, "refusals": REFUSALS}
    (folder / "phrases.json").write_text(json.dumps(phrases))
    return folder


def test_targets_named_by_their_states_and_explained_by_the_book(copy):
    session = medisee.load(str(with_words(copy))).open(PICTURE)
    silent = session.ask(QUESTIONS, explain=False)
    spoken = session.ask(QUESTIONS)
    for answer, other in zip(spoken, silent, strict=True):
        labels = [finding.label for finding in answer.findings]
        assert labels == [finding.label for finding in other.findings]
        sentences = [f"{part}." for part in answer.text.rstrip(".").split(". ")]
        assert len(sentences) == len(labels) >= 1
        for label, sentence in zip(labels, sentences, strict=True):
            assert sentence in ANSWERS[label]


def test_the_words_of_many_targets_are_not_cut_short(copy):
    long = ["The spleen filters blood." + " It filters blood and blood again" * 6 + "."]
    runtime = medisee.load(str(with_words(copy, {"liver": long, "spleen": long}))).runtime
    session = medisee.load(str(copy)).open(PICTURE)
    [raw] = runtime.perceive(session._encoded, [runtime.processor.question_ids("?")], accept=0.0)
    many = replace(raw, labels=["spleen"] * 8, presence=[1.0] * 8)
    text = runtime.processor.decode(list(runtime.explain(many, None)))
    assert text == " ".join(long * 8)


def test_refusals_by_the_book(copy):
    session = medisee.load(str(with_words(with_calibration(copy, NEVER)))).open(PICTURE)
    for answer in session.ask(QUESTIONS):
        assert answer.text in REFUSALS
        assert answer.text.startswith(OPENINGS[answer.refusal])


@pytest.mark.parametrize("lacking", ["words", "categories"])
def test_categories_and_phrases_must_fit(copy, lacking):
    with_words(copy, {"liver": ANSWERS["liver"]} if lacking == "words" else None)
    if lacking == "categories":
        (copy / "categories.safetensors").unlink()
    with pytest.raises(ModelError, match=r"phrases\.json") as caught:
        medisee.load(str(copy))
    assert one_line(caught)


# ---- warnings ------------------------------------------------------------------------------------


def oriented():
    return replace(read_image(PICTURE), orientation=Orientation("R", "A"))


@pytest.mark.parametrize("explain", [True, False])
def test_sides_without_orientation_are_warned_of(model, explain, monkeypatch):
    monkeypatch.setattr(type(model.runtime), "explain", lambda *_: iter(()))
    session = model.open(PICTURE)
    answer = session.ask("Where is the left kidney?", explain=explain)
    assert answer.warnings.count(NO_ORIENTATION) == 1
    assert NO_ORIENTATION not in session.ask("Where is the liver?", explain=explain).warnings
    assert NO_ORIENTATION not in model.open(oriented()).ask("Left lung?", explain=explain).warnings


def test_sides_in_the_explanation_are_warned_of(model, monkeypatch):
    ids = model.processor.encode_text("The right lung, on the left.")
    monkeypatch.setattr(type(model.runtime), "explain", lambda *_: iter(ids))
    answer = model.open(PICTURE).ask("Which lung is this, left or right?")
    assert answer.warnings.count(NO_ORIENTATION) == 1
    answer = model.open(PICTURE).ask("Which lung is this?")
    assert answer.warnings.count(NO_ORIENTATION) == 1
    assert NO_ORIENTATION not in model.open(oriented()).ask("Which lung?").warnings


@pytest.mark.parametrize(
    "question, foreign",
    [
        ("Где печень?", True),
        ("肝臓はどこですか", True),
        ("Où est le foie, s'il vous plaît ?", False),
        ("???", False),
        ("Where is the liver (肝)?", False),
    ],
)
def test_another_script_is_warned_of(model, question, foreign):
    answer = model.open(PICTURE).ask(question, explain=False)
    assert (NOT_ENGLISH in answer.warnings) is foreign


def test_an_image_unlike_the_training_images_is_warned_of(copy):
    centre, spread = np.zeros((1, 32), np.float32), np.ones(32, np.float32)
    for limit, unlike in ((0.0, True), (1e9, False)):
        Familiarity(centre, spread, limit).save(copy)
        answer = medisee.load(str(copy)).open(PICTURE).ask(QUESTIONS[0], explain=False)
        assert (UNFAMILIAR in answer.warnings) is unlike


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("question", ["", "  \n", "a" * 1_000_000, "\ud800?"])
def test_a_question_that_is_none_is_refused_before_any_work(model, question, monkeypatch):
    session = model.open(PICTURE)
    monkeypatch.setattr(type(model.runtime), "perceive", None)
    for asking in (session.ask, lambda q: list(session.stream(q)), lambda q: session.ask([q])):
        with pytest.raises(InputError) as caught:
            asking(question)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


def one_line(caught):
    text = str(caught.value)
    return text and "\n" not in text and len(text) < 400


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"runtime": "jax"}, "jax"),
        ({"device": "banana"}, "banana"),
        ({"device": "cuda:77"}, "cuda:77"),
        ({"name": "no such model"}, "no such model"),
        ({"name": ""}, "model"),
    ],
)
def test_what_is_not_there_is_named(folder, settings, words):
    with pytest.raises(ModelError, match=words) as caught:
        medisee.load(**{"name": str(folder), **settings})
    assert one_line(caught)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json") as caught:
        medisee.load(str(tmp_path))
    assert one_line(caught)


def packed(folder):
    """The folder with packed weights in place of the others."""
    model, _ = tiny_nano(box_decoder="grounded")
    model.save_packed(folder)
    (folder / "model.safetensors").unlink()
    return folder / "packed.safetensors"


@pytest.mark.parametrize("form", ["model.safetensors", "packed.safetensors"])
@pytest.mark.parametrize("damage", ["half", "few bytes", "empty", "text", "header"])
def test_broken_weights(copy, form, damage):
    file = packed(copy) if form.startswith("packed") else copy / form
    whole = file.read_bytes()
    content = {
        "half": whole[: len(whole) // 2],
        "few bytes": whole[:5],
        "empty": b"",
        "text": b"these are no weights at all",
        "header": b"\xff" * 16 + whole[16:],
    }
    file.write_bytes(content[damage])
    with pytest.raises(ModelError) as caught:
        medisee.load(str(copy))
    assert one_line(caught)


@pytest.mark.parametrize(
    "file", ["categories.safetensors", "familiarity.json", "calibration.json", "phrases.json"]
)
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"no such thing", b"\xff\xfe\x00"])
def test_broken_additions(copy, file, content):
    (copy / file).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        medisee.load(str(copy)).open(PICTURE)
    assert one_line(caught)


@pytest.mark.parametrize("form", ["model.safetensors", "packed.safetensors"])
@pytest.mark.parametrize("change", [{"box_hidden": 40}, {"fusion": "hard"}, {"box_decoder": "mlp"}])
def test_weights_of_another_architecture(copy, form, change):
    if form.startswith("packed"):
        packed(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError) as caught:
        medisee.load(str(copy))
    assert one_line(caught)


@pytest.mark.parametrize(
    "content", ["", "no json", "[]", '{"fusion": "mean"}', '{"mllm": {"model_type": "unheard of"}}']
)
def test_broken_configurations(copy, content):
    (copy / "config.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        medisee.load(str(copy))
    assert one_line(caught)


def test_packed_folders_answer_too(copy, model):
    packed(copy)
    loaded = medisee.load(str(copy))
    answer = loaded.open(PICTURE).ask(QUESTIONS[0], explain=False)
    expected = model.open(PICTURE).ask(QUESTIONS[0], explain=False)
    # Within the error of eight bits.
    difference = np.abs(similarity(answer) - similarity(expected)).max()
    assert 0 < difference < 0.2 * np.abs(similarity(expected)).max()
