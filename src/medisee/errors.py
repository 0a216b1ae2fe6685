"""What a user may see when something is wrong: one line that says what, and what to do."""

from __future__ import annotations

__all__ = ["DataError", "InputError", "MediSeeError", "MissingExtraError", "ModelError"]


class MediSeeError(Exception):
    """Base of every error that is meant for the user; its text is a single line.

    The text never holds image content, question text or patient details, at most the file name
    that the user typed. The command line prints it and exits with `exit_code`.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class InputError(MediSeeError):
    """An image, a question or an output place cannot be used."""


class ModelError(MediSeeError):
    """A model name, folder, configuration or weight file cannot be used."""


class DataError(MediSeeError):
    """A data set, record or training recipe cannot be used."""


class MissingExtraError(MediSeeError):
    """A feature needs packages of an extra that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        """Name the `feature` and the `extra` that brings it, e.g. ("training", "torch")."""
        super().__init__(f"{feature} needs more packages: pip install 'medisee[{extra}]'")
        self.feature = feature
        self.extra = extra
