"""A phrasebook lets a small model choose among checked sentences, and nothing else."""

from __future__ import annotations

import pytest
from tiny import tiny_processor

from medisee.phrases import Phrasebook, speak
from medisee.processing import MediSeeProcessor

ANSWERS = {
    "liver": ("The liver makes bile.", "The liver is large."),
    "spleen": ("The spleen filters blood.",),
}
REFUSALS = ("Nothing is here.", "This cannot show it.", "That is odd.", "Please say more.")


@pytest.fixture(scope="module")
def processor():
    plain = tiny_processor()
    return MediSeeProcessor(plain.config, plain.tokenizer, Phrasebook(ANSWERS, REFUSALS))


def walk(phrases, labels, choose):
    """All ids of a text whose every step is chosen among what is allowed."""
    said = []
    while choices := phrases.allowed(labels, said):
        said.append(choose(choices))
    return said


@pytest.mark.parametrize("choose", [min, max])
@pytest.mark.parametrize("labels", [["liver"], ["spleen", "liver"], ["liver", "liver", "spleen"]])
def test_one_whole_sentence_for_each_target(processor, choose, labels):
    text = processor.decode(walk(processor.phrases, labels, choose))
    sentences = [f"{part}." for part in text.rstrip(".").split(". ")]
    assert len(sentences) == len(labels)
    assert all(s in ANSWERS[label] for s, label in zip(sentences, labels, strict=True))


@pytest.mark.parametrize("choose", [min, max])
def test_a_refusal_is_a_refusals_sentence(processor, choose):
    assert processor.decode(walk(processor.phrases, [], choose)) in REFUSALS


def test_what_was_said_decides_what_may_follow(processor):
    begun = processor.encode_text(" The liver")
    allowed = processor.phrases.allowed(["liver"], begun)
    assert processor.encode_text(" makes")[0] in allowed
    assert set(allowed) <= {processor.encode_text(word)[0] for word in (" makes", " is")}
    assert (
        processor.phrases.allowed(["spleen"], processor.encode_text(" The spleen filters blood."))
        == []
    )


def test_every_reason_to_refuse_needs_its_words():
    plain = tiny_processor()
    with pytest.raises(ValueError, match="no refusal"):
        MediSeeProcessor(plain.config, plain.tokenizer, Phrasebook(ANSWERS, REFUSALS[:3]))


def test_it_is_kept_with_the_model(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = MediSeeProcessor.from_pretrained(tmp_path)
    assert again.phrases.answers == ANSWERS
    assert again.phrases.allowed(["liver"], []) == processor.phrases.allowed(["liver"], [])


def spoken(sentences, liked, **options):
    """What is said of given sentences, and the calls that it took: (tokens read, choices)."""
    book = Phrasebook({"x": []}, [])
    book.answers = {"x": sentences}
    book.index(lambda text: [int(word) for word in text.split()])
    calls = []

    def best(unread, choices):
        calls.append((unread, choices))
        return next(token for token in liked if token in choices)

    allowed = lambda said: book.allowed(["x"], said)  # noqa: E731
    options = {"opening": None, "stop": 0, "most": 9} | options
    return list(speak(best, allowed=allowed, **options)), calls


def test_only_where_sentences_part_a_model_is_asked():
    words, calls = spoken(["1 2 3 4 5", "1 2 6 4 5", "1 2 6 7"], liked=[6, 7, 3, 4])
    assert words == [1, 2, 6, 7]
    assert calls == [([1, 2], [3, 6]), ([6], [4, 7])]


def test_one_sentence_needs_no_model():
    assert spoken(["1 2 3"], liked=[]) == ([1, 2, 3], [])


def test_words_stop_at_the_most_allowed():
    assert spoken(["1 2 3"], liked=[], most=2)[0] == [1, 2]


def test_without_sentences_every_word_is_asked_for():
    told = iter([4, 5, 0, 6])
    reads = []

    def best(unread, choices):
        assert choices is None
        reads.append(unread)
        return next(told)

    assert list(speak(best, opening=3, stop=0, most=9)) == [3, 4, 5]
    assert reads == [[3], [4], [5]]
