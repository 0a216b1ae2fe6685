"""The shipped test double follows the predictor's protocol."""

from __future__ import annotations

import pytest

from medisee.io import read_image
from medisee.structures import RefusalReason
from medisee.testing import FakeModel


@pytest.fixture
def session(scan):
    return FakeModel(label="kidney").open(read_image(scan))


def test_one_answer_or_a_list_as_asked(session):
    answer = session.ask("Where?")
    assert [finding.label for finding in answer.findings] == ["kidney"]
    assert answer.findings[0].mask.shape == (48, 64)
    assert [a.question for a in session.ask(["One?", "Two?"])] == ["One?", "Two?"]
    assert session.asked == ["Where?", "One?", "Two?"]


def test_stream_gives_the_findings_before_the_words(session):
    first, *pieces = session.stream("Where?")
    assert first.findings
    assert "".join(pieces).strip() == first.text


def test_it_refuses_when_told(session):
    answer = session.ask("How is the weather?", explain=False)
    assert answer.refusal is RefusalReason.NOT_MEDICAL
    assert not answer.findings
