"""From image and question to arrays, and from raw outputs to findings (numpy, Pillow).

Both runtimes share this room, so it knows neither torch nor transformers.
"""

from .answers import REFUSAL_OPENINGS, RawAnswer, raw_score, raw_scores, to_findings
from .pixels import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SegmenterInput,
    clip_input,
    fit_longest_side,
    fit_shortest_side,
    resize_area,
    restore_mask,
    segmenter_input,
)
from .processor import (
    TOKENS_PER_TARGET,
    MediSeeProcessor,
    ProcessorConfig,
    PromptTemplate,
    answer_opening,
)

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "REFUSAL_OPENINGS",
    "TOKENS_PER_TARGET",
    "MediSeeProcessor",
    "ProcessorConfig",
    "PromptTemplate",
    "RawAnswer",
    "SegmenterInput",
    "answer_opening",
    "clip_input",
    "fit_longest_side",
    "fit_shortest_side",
    "raw_score",
    "raw_scores",
    "resize_area",
    "restore_mask",
    "segmenter_input",
    "to_findings",
]
