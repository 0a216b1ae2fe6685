"""Fixtures of the commands' tests."""

from smallset import data, questions

__all__ = ["data", "questions"]
