"""What counts as a question: checked before any time is spent on image or model."""

from __future__ import annotations

from medisee.errors import InputError

__all__ = ["MAX_CHARACTERS", "check_question"]

MAX_CHARACTERS = 2000
"""Longest question, in characters."""


def check_question(text: str) -> str:
    """The question without surrounding space.

    Raises InputError when nothing is left, when it is longer than `MAX_CHARACTERS`, or when it is
    no text (bytes of another encoding that the terminal passed on).
    """
    question = text.strip()
    if not question:
        raise InputError("the question is empty; ask for something that can be seen in the image")
    if len(question) > MAX_CHARACTERS:
        raise InputError(
            f"the question has {len(question):,} characters; {MAX_CHARACTERS:,} are the limit"
        )
    if any("\ud800" <= char <= "\udfff" for char in question):
        raise InputError("the question is not valid text; use a UTF-8 terminal")
    return question
