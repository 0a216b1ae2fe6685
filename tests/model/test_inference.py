"""The three phases against the plain forward: what a session sees is what was trained."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    END_ID,
    OPENINGS,
    QUESTIONS,
    group_of,
    images,
    more_of,
    plain_states,
    run,
    tiny_model,
)

CLOSE = {"rtol": 1e-3, "atol": 2e-4}
KINDS = pytest.mark.parametrize("kind", ["nano", "llava"])


class Phases:
    """A model, an encoded image, and the plain forward beside them."""

    def __init__(self, model, image=0):
        self.model, self.batch, self.place = model, images(model), image
        self.image = model.encode_image(**self.batch.image(image))
        self.group, self.more = group_of(model), more_of(model)

    def perceive(self, questions=QUESTIONS, **settings):
        return self.model.perceive(
            self.image, questions, self.group, self.more, OPENINGS, **settings
        )

    @torch.no_grad()
    def forward(self, rows):
        return run(self.model, self.batch, rows, [self.place] * len(rows))

    def greedy(self, row, count, first=None):
        """Plain greedy decoding: the whole sequence anew for every token."""
        row, words = list(row), []
        for step in range(count):
            last = plain_states(self.model, self.batch, self.place, row)[-1]
            chosen = int(self.model.text.logits(last).argmax())
            token = first if step == 0 and first is not None else chosen
            if token == END_ID:
                break
            words.append(token)
            row.append(token)
        return words


@KINDS
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_perceive_finds_what_forward_finds(kind, name):
    phases = Phases(tiny_model(kind, **ARCHITECTURES[name]), image=1)
    perceived = phases.perceive(accept=0.0, another=1.1)
    plain = phases.forward([question + phases.group for question in QUESTIONS])
    assert plain.target_question.tolist() == [0, 1, 2]
    for row, each in enumerate(perceived):
        assert each.targets.keys() == plain.located.keys()
        for key, value in each.targets.items():
            torch.testing.assert_close(value, plain.located[key][row : row + 1], **CLOSE)


@KINDS
def test_the_decision_is_read_where_the_answer_begins(kind):
    phases = Phases(tiny_model(kind))
    plain = phases.forward(QUESTIONS)
    for row, each in enumerate(phases.perceive(accept=0.0)):
        logits = plain.logits[row, len(QUESTIONS[row]) - 1]
        torch.testing.assert_close(each.decision, logits[OPENINGS].softmax(-1), **CLOSE)
        assert each.presence[0] == pytest.approx(float(each.decision[0]))


def test_acceptance_divides_the_questions_of_one_batch():
    phases = Phases(tiny_model())
    chances = sorted(float(each.decision[0]) for each in phases.perceive(accept=0.0))
    assert chances[0] < chances[1] - 1e-3
    middle = (chances[0] + chances[1]) / 2
    perceived = phases.perceive(accept=middle)
    accepted = [each.targets is not None for each in perceived]
    assert accepted == [float(each.decision[0]) >= middle for each in perceived]
    assert sum(accepted) == 2
    alone = [phases.perceive([question], accept=middle)[0] for question in QUESTIONS]
    for each, single in zip(perceived, alone, strict=True):
        assert (each.targets is None) == (single.targets is None)
        if each.targets is not None:
            for key, value in each.targets.items():
                torch.testing.assert_close(value, single.targets[key], **CLOSE)


# ---- several targets -----------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("name", ["soft-mlp", "three-points", "single-box"])
def test_further_groups_equal_forward_on_the_whole_answer(kind, name):
    phases = Phases(tiny_model(kind, **ARCHITECTURES[name]))
    perceived = phases.perceive(accept=0.0, another=0.0, max_targets=3)
    rows = [question + phases.group + phases.more * 2 for question in QUESTIONS]
    plain = phases.forward(rows)
    for row, each in enumerate(perceived):
        assert len(each.targets.mask_logits) == len(each.presence) == 3
        for key, value in each.targets.items():
            torch.testing.assert_close(value, plain.located[key][3 * row : 3 * row + 3], **CLOSE)


def chances_of_more(phases):
    rows = [question + phases.group for question in QUESTIONS]
    logits = phases.forward(rows).logits
    last = torch.stack([logits[row, len(ids) - 1] for row, ids in enumerate(rows)])
    return last.softmax(-1)[:, phases.more[0]]


def test_only_rows_that_want_another_group_get_one():
    phases = Phases(tiny_model())
    first = chances_of_more(phases)
    threshold = float(first.sort().values[:2].mean())
    perceived = phases.perceive(accept=0.0, another=threshold, max_targets=2)
    counts = [len(each.presence) for each in perceived]
    assert counts == [2 if chance >= threshold else 1 for chance in first]
    assert set(counts) == {1, 2}
    for row, each in enumerate(perceived):
        # The row's own words follow its own last group, not the padding of its neighbours.
        ids = QUESTIONS[row] + phases.group + phases.more * (len(each.presence) - 1)
        plain = phases.forward([ids])
        torch.testing.assert_close(each.next_logits, plain.logits[0, -1], **CLOSE)
        assert each.keys_values[0][0].shape[2] == phases.image.prefix.length + len(ids)
        for key, value in each.targets.items():
            torch.testing.assert_close(value, plain.located[key], **CLOSE)
        words = list(phases.model.explain(each, None, END_ID, max_tokens=4))
        assert words == phases.greedy(ids, 4)
    wanting = counts.index(2)
    assert perceived[wanting].presence[1] == pytest.approx(float(first[wanting]), abs=1e-4)


def test_a_refused_question_opens_no_further_group():
    phases = Phases(tiny_model())
    for each in phases.perceive(accept=1.1, another=0.0):
        assert each.targets is None
        assert each.presence == []


def test_there_are_never_more_than_max_targets():
    phases = Phases(tiny_model())
    for most in (1, 2, 4):
        perceived = phases.perceive(QUESTIONS[:2], accept=0.0, another=0.0, max_targets=most)
        assert [len(each.presence) for each in perceived] == [most, most]


# ---- words ---------------------------------------------------------------------------------------


@KINDS
def test_words_equal_a_plain_greedy_decode_of_the_same_sequence(kind):
    phases = Phases(tiny_model(kind))
    for question, each in zip(QUESTIONS, phases.perceive(accept=0.0, another=1.1), strict=True):
        words = list(phases.model.explain(each, None, END_ID, max_tokens=6))
        assert words == phases.greedy(question + phases.group, 6)


def test_words_after_several_groups_follow_the_last_group():
    phases = Phases(tiny_model())
    [each] = phases.perceive([QUESTIONS[1]], accept=0.0, another=0.0, max_targets=3)
    words = list(phases.model.explain(each, None, END_ID, max_tokens=6))
    assert words == phases.greedy(QUESTIONS[1] + phases.group + phases.more * 2, 6)


@KINDS
def test_words_of_a_refusal_follow_the_question_and_its_opening(kind):
    """The opening that was not taken is gone from the cache."""
    phases = Phases(tiny_model(kind))
    for question, each in zip(QUESTIONS, phases.perceive(accept=1.1), strict=True):
        words = list(phases.model.explain(each, OPENINGS[1], END_ID, max_tokens=6))
        assert words[0] == OPENINGS[1]
        assert words == phases.greedy(question, 6, first=OPENINGS[1])


def test_words_end_with_the_end_token_and_with_the_limit():
    phases = Phases(tiny_model())
    [each] = phases.perceive(QUESTIONS[:1], accept=0.0, another=1.1)
    words = list(phases.model.explain(each, None, stop=-1, max_tokens=9))
    assert len(words) == 9
    stop = words[4]
    ended = list(phases.model.explain(each, None, stop, max_tokens=9))
    assert ended == words[: words.index(stop)]


def test_explaining_twice_gives_the_same_words():
    phases = Phases(tiny_model())
    [each] = phases.perceive(QUESTIONS[:1], accept=0.0)
    first = list(phases.model.explain(each, None, END_ID, 5))
    assert list(phases.model.explain(each, None, END_ID, 5)) == first
