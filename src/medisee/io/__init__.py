"""Images in, answers out: `read_image` and `write_answer`.

Nothing here knows a model. pydicom and nibabel are imported by the readers that need them, on use.
"""

from __future__ import annotations

from medisee.io.display import WINDOWS
from medisee.io.reading import ImageSource, holds_volume, open_volume, read_image
from medisee.io.request import Limits
from medisee.io.volume import MedicalVolume
from medisee.io.writing import (
    FORMATS,
    check_formats,
    encode_results,
    free_stem,
    parse_formats,
    why_not,
    write_answer,
)

__all__ = [
    "FORMATS",
    "WINDOWS",
    "ImageSource",
    "Limits",
    "MedicalVolume",
    "check_formats",
    "encode_results",
    "free_stem",
    "holds_volume",
    "open_volume",
    "parse_formats",
    "read_image",
    "why_not",
    "write_answer",
]
