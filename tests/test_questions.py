"""What counts as a question."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisee.errors import InputError
from medisee.questions import MAX_CHARACTERS, check_question


@given(st.text(max_size=2 * MAX_CHARACTERS))
def test_a_question_is_given_back_stripped_or_refused(text):
    try:
        question = check_question(text)
    except InputError as error:
        assert not text.strip() or len(text.strip()) > MAX_CHARACTERS
        assert "\n" not in str(error)
    else:
        assert question == text.strip()


@pytest.mark.parametrize("text", ["", "  \n", "a" * (MAX_CHARACTERS + 1), "\udce9"])
def test_refused(text):
    with pytest.raises(InputError):
        check_question(text)


def test_the_longest_question_and_other_scripts_are_fine():
    assert check_question("a" * MAX_CHARACTERS)
    assert check_question(" 肝臓はどこですか ") == "肝臓はどこですか"
