"""Which packages below speak of what they read, and how they are made silent."""

from __future__ import annotations

import logging

__all__ = ["silence_readers"]

_READERS = (
    *("pydicom", "highdicom", "nibabel", "PIL", "python_multipart"),
    *("dicomweb_client", "retrying", "urllib3"),
)
"""Their log lines quote what they read, patient details too, when a value is odd."""


def silence_readers() -> None:
    """Nothing that readers of files and requests say reaches a log or the screen."""
    for reader in _READERS:
        logging.getLogger(reader).setLevel(logging.CRITICAL + 1)
