"""Images in, answers out: `read_image` and `write_answer`.

Nothing here knows a model. pydicom and nibabel are imported by the readers that need them, on use.
"""

from __future__ import annotations

from medisee.io.display import WINDOWS
from medisee.io.reading import ImageSource, read_image
from medisee.io.writing import free_stem, write_answer

__all__ = ["WINDOWS", "ImageSource", "free_stem", "read_image", "write_answer"]
