"""The types that travel between the rooms: images, findings, answers and QA records.

Masks are bool (H, W) on the original grid, boxes xyxy in pixels (right and bottom exclusive),
left and right are the patient's, lengths in mm, scores in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from PIL import Image

    from medisee.io.reference import SourceReference

__all__ = [
    "ANSWER_SCHEMA",
    "RLE",
    "Answer",
    "Finding",
    "MedicalImage",
    "Orientation",
    "QARecord",
    "QARound",
    "QATarget",
    "RefusalReason",
    "decode_rle",
    "encode_rle",
]

ANSWER_SCHEMA = "medisee.answer/1"
"""Name and version of the JSON that `Answer.to_dict` gives (docs/answer.schema.json)."""

Direction = Literal["L", "R", "A", "P", "H", "F"]
_OPPOSITE: dict[str, Direction] = {"L": "R", "R": "L", "A": "P", "P": "A", "H": "F", "F": "H"}
_PLANES = {"LR": "sagittal", "AP": "coronal", "FH": "axial"}


@dataclass(frozen=True)
class Orientation:
    """Which direction of the patient the image's left and top edges show.

    Letters as in DICOM's Patient Orientation: L(eft), R(ight), A(nterior), P(osterior), H(ead),
    F(oot); of an oblique image the nearest direction. `Orientation("R", "A")` is an axial image
    in radiological display: the patient's right is on the image's left, anterior is up.
    """

    left: Direction
    top: Direction

    def __post_init__(self) -> None:
        if self.left not in _OPPOSITE or self.top not in _OPPOSITE:
            raise ValueError("directions are one letter of L, R, A, P, H, F")
        if self.top in (self.left, _OPPOSITE[self.left]):
            raise ValueError("left and top must lie on different patient axes")

    @property
    def right(self) -> Direction:
        """The direction that the image's right edge shows."""
        return _OPPOSITE[self.left]

    @property
    def bottom(self) -> Direction:
        """The direction that the image's bottom edge shows."""
        return _OPPOSITE[self.top]

    @property
    def plane(self) -> str:
        """The nearest standard plane: `axial`, `coronal` or `sagittal`."""
        used = {self.left, self.right, self.top, self.bottom}
        return next(name for axis, name in _PLANES.items() if axis[0] not in used)

    @property
    def patient_left(self) -> Literal["left", "right", "top", "bottom"] | None:
        """The image edge that shows the patient's left; None in a sagittal image."""
        edges = {self.left: "left", self.right: "right", self.top: "top", self.bottom: "bottom"}
        return edges.get("L")  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class MedicalImage:
    """One two-dimensional medical image, without anything that tells who the patient is.

    pixels: (H, W) or (H, W, 3) as stored (for DICOM and NIfTI after rescaling, e.g. HU).
    display: (H, W, 3) uint8 rendering; what people and models see.
    modality: "CT", "MR", "US", "X-ray"...; None when the file does not say.
    spacing: (row, column) in mm; None when the file does not say.
    orientation: None when the file does not say which side is which.
    source: file name, or what kind of object the image came from.
    affine: (4, 4) voxel to RAS+ mm of the volume that the slice was taken from, when known.
    notes: what the reader had to decide (slice, frame, window), one sentence each.
    places: "slice" and "frame" as (index from 0, how many there are), where the file has several.
    reference: where the pixels lie in their file, for results in the file's own terms (DICOM-SEG,
        NIfTI); None for pictures and arrays.
    """

    pixels: NDArray[Any]
    display: NDArray[np.uint8]
    modality: str | None
    spacing: tuple[float, float] | None
    orientation: Orientation | None
    source: str
    affine: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    reference: SourceReference | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        height_width = self.pixels.shape[:2]
        if self.pixels.ndim not in (2, 3) or (self.pixels.ndim == 3 and self.pixels.shape[2] != 3):
            raise ValueError(f"pixels have the shape (H, W) or (H, W, 3), not {self.pixels.shape}")
        if self.display.shape != (*height_width, 3) or self.display.dtype != np.uint8:
            raise ValueError("display must be uint8 (H, W, 3) on the grid of pixels")

    @property
    def height(self) -> int:
        """Rows in pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns in pixels."""
        return int(self.pixels.shape[1])


@dataclass(frozen=True, eq=False)
class Finding:
    """One target that was found.

    mask: (H, W) bool on the original grid; box: xyxy in pixels, right and bottom exclusive.
    score: calibrated probability that the mask overlaps the truth with IoU > 0.5.
    similarity: (h, w) float map over the image tokens; label: None until the explanation exists.
    """

    mask: NDArray[np.bool_]
    box: tuple[float, float, float, float]
    score: float
    similarity: NDArray[np.floating[Any]] | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.bool_:
            raise ValueError("a finding's mask is bool with the shape (H, W)")
        if len(self.box) != 4:
            raise ValueError("a finding's box is (x1, y1, x2, y2)")
        if not 0.0 <= self.score <= 1.0:
            raise ValueError("a finding's score lies in [0, 1]")


class RefusalReason(str, Enum):
    """Why a question was not answered with a finding."""

    NOT_IN_VIEW = "not_in_view"
    WRONG_MODALITY = "wrong_modality"
    NOT_MEDICAL = "not_medical"
    UNCLEAR = "unclear"


@dataclass
class Answer:
    """Explanation text and 0..k findings, or a refusal with its reason; and warnings.

    seconds: duration of each phase, e.g. {"encode": 0.9, "perceive": 0.1, "explain": 0.3}.
    """

    question: str
    text: str
    findings: list[Finding]
    refusal: RefusalReason | None
    warnings: list[str]
    image: MedicalImage
    model: str
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types as docs/answer.schema.json describes; masks as COCO RLE, no pixels."""
        return {
            "schema": ANSWER_SCHEMA,
            "question": self.question,
            "text": self.text,
            "refusal": None if self.refusal is None else self.refusal.value,
            "findings": [_finding_dict(finding, self.image.spacing) for finding in self.findings],
            "warnings": list(self.warnings),
            "image": _image_dict(self.image),
            "model": self.model,
            "seconds": {phase: round(float(s), 4) for phase, s in self.seconds.items()},
        }

    # The two methods below are doors to the io room for people who hold an answer; io itself
    # builds on this module, hence the imports on use.

    def overlay(self) -> Image.Image:
        """Picture of the image with masks, boxes, labels, and a caption with the explanation."""
        from medisee.io.overlay import draw_answer

        return draw_answer(self)

    def save(
        self,
        directory: str | Path,
        stem: str | None = None,
        overwrite: bool = False,
        formats: Sequence[str] = (),
    ) -> list[Path]:
        """Write overlay PNG, JSON and one mask PNG per finding; see `medisee.io.write_answer`.

        formats: "nifti", "seg" and "sr" write the masks in the terms of the image's file too.
        """
        from medisee.io.writing import write_answer

        return write_answer(self, directory, stem=stem, overwrite=overwrite, formats=formats)


def _finding_dict(finding: Finding, spacing: tuple[float, float] | None) -> dict[str, Any]:
    area = int(finding.mask.sum())
    return {
        "label": finding.label,
        "score": round(float(finding.score), 4),
        "box": [round(float(edge), 2) for edge in finding.box],
        "area_px": area,
        "area_mm2": None if spacing is None else round(area * spacing[0] * spacing[1], 2),
        "mask": encode_rle(finding.mask),
    }


def _image_dict(image: MedicalImage) -> dict[str, Any]:
    orientation = image.orientation
    return {
        "source": image.source,
        "height": image.height,
        "width": image.width,
        "modality": image.modality,
        "spacing_mm": None if image.spacing is None else [float(s) for s in image.spacing],
        "orientation": orientation and {"left": orientation.left, "top": orientation.top},
        "notes": list(image.notes),
    }


class RLE(TypedDict):
    """A mask in COCO's compressed run-length encoding: size [H, W] and ASCII counts."""

    size: list[int]
    counts: str


def encode_rle(mask: NDArray[Any]) -> RLE:
    """COCO RLE of a (H, W) mask; readable by pycocotools and every COCO tool."""
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_rle(rle: RLE) -> NDArray[np.bool_]:
    """The (H, W) bool mask of a COCO RLE."""
    from pycocotools import mask as coco

    counts = rle["counts"].encode("ascii")
    return coco.decode({"size": rle["size"], "counts": counts}).astype(bool)


class QATarget(BaseModel):
    """One target of a QA record: label, mask files relative to the data set, box around them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(min_length=1)
    masks: list[str] = Field(min_length=1)
    box: tuple[float, float, float, float]

    @model_validator(mode="after")
    def _box_has_area(self) -> QATarget:
        x1, y1, x2, y2 = self.box
        if not (0 <= x1 < x2 < float("inf") and 0 <= y1 < y2 < float("inf")):
            raise ValueError("box must be x1 < x2, y1 < y2 in pixels")
        return self


class QARound(BaseModel):
    """An earlier round of the same conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    answer: str


class QARecord(BaseModel):
    """One line of a question-answer data set (MLMR-SD and our own).

    `pass_` is written as `pass`. With exactly one target, `label` and `box` stand at the top
    level of the written record too, so that simple readers need not know about targets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    id: str = Field(min_length=1)
    image: str = Field(min_length=1)
    kind: Literal["implicit", "referring", "absent", "several", "round"]
    targets: list[QATarget] = Field(default_factory=list)
    label: str | None = None
    box: tuple[float, float, float, float] | None = None
    modality: str | None = None
    perspective: Literal["attribute", "location"] | None = None
    length: Literal["short", "long"] | None = None
    pass_: Literal[1, 2] = Field(default=1, alias="pass")
    question: str = Field(min_length=1)
    answer: str = ""
    history: list[QARound] = Field(default_factory=list)
    refusal: RefusalReason | None = None
    writer: str | None = None
    prompt_version: str | None = None
    verdict: str | None = None
    licence: str | None = None
    split: str | None = None

    @model_validator(mode="after")
    def _targets_fit_kind(self) -> QARecord:
        count = len(self.targets)
        if self.kind == "absent" and count:
            raise ValueError("an absent record has no targets")
        if (self.refusal is not None) != (self.kind == "absent"):
            raise ValueError("absent records, and only they, carry the reason of their refusal")
        if self.kind != "absent" and count < (2 if self.kind == "several" else 1):
            raise ValueError(f"a record of kind {self.kind!r} has too few targets")
        single = (self.targets[0].label, self.targets[0].box) if count == 1 else (None, None)
        if self.label not in (None, single[0]) or self.box not in (None, single[1]):
            raise ValueError("label and box must repeat those of the single target")
        object.__setattr__(self, "label", single[0])
        object.__setattr__(self, "box", single[1])
        return self

    def to_json(self) -> str:
        """One JSON line, without the line break."""
        return self.model_dump_json(by_alias=True, exclude_none=False)
