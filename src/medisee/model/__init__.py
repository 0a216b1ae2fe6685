"""The model: torch and transformers, no files but weights."""

from .configuration import (
    MediSeeConfig,
    SegmenterConfig,
    SharedEncoderConfig,
    TinyViTConfig,
    candidate_tokens,
)
from .modeling import MediSeeModel
from .outputs import EncodedImage, Located, MediSeeOutput, Perceived

__all__ = [
    "EncodedImage",
    "Located",
    "MediSeeConfig",
    "MediSeeModel",
    "MediSeeOutput",
    "Perceived",
    "SegmenterConfig",
    "SharedEncoderConfig",
    "TinyViTConfig",
    "candidate_tokens",
]
