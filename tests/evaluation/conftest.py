"""Fixtures of the evaluation's tests."""

from smallset import data, questions

__all__ = ["data", "questions"]
