"""A stack of slices, each read exactly as it would be read alone; and answers about all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medisee.io.reference import SourceReference
from medisee.structures import Answer, MedicalImage, RefusalReason, encode_rle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

__all__ = ["VOLUME_SCHEMA", "MedicalVolume", "VolumeAnswer", "VolumeFinding", "findings_of"]

VOLUME_SCHEMA = "medisee.volume-answer/1"
"""Name and version of the JSON that `VolumeAnswer.to_dict` gives."""


@dataclass(frozen=True, eq=False)
class MedicalVolume:
    """The slices of one volume, in order along one axis of the stored array.

    source: name of the file or folder; plane: of the slices, None where the source states none.
    affine: (4, 4) stored index to RAS+ mm; None where unknown, or where slices are not evenly
    spaced. notes: what the reader had to decide. Iterating or indexing reads slices.
    """

    source: str
    plane: str | None
    reference: SourceReference
    affine: NDArray[np.float64] | None
    notes: tuple[str, ...]
    read: Callable[[int], MedicalImage] = field(repr=False)

    def __len__(self) -> int:
        return self.reference.shape[self.reference.axis]

    def __getitem__(self, index: int) -> MedicalImage:
        """Slice `index`, 0 to len - 1; its reference and affine are those of the volume."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = replace(self.reference, index=index)
        return replace(self.read(index), reference=place, affine=self.affine)

    def __iter__(self) -> Iterator[MedicalImage]:
        return (self[index] for index in range(len(self)))

    @property
    def voxel_mm3(self) -> float | None:
        """Volume of one voxel; None where the geometry is unknown."""
        return None if self.affine is None else float(abs(np.linalg.det(self.affine[:3, :3])))


@dataclass(frozen=True, eq=False)
class VolumeFinding:
    """One target, on the slices that show it.

    masks: (H, W) bool by slice, as the slice is shown; scores: each slice's calibrated score.
    score: the highest of them; label: None where nobody named it.
    """

    label: str | None
    masks: Mapping[int, NDArray[np.bool_]]
    scores: Mapping[int, float]

    @property
    def score(self) -> float:
        """That of the slice which is surest."""
        return max(self.scores.values())

    @property
    def largest(self) -> int:
        """The slice on which it covers most pixels."""
        return max(self.masks, key=lambda index: int(self.masks[index].sum()))

    @property
    def voxels(self) -> int:
        """How many voxels it has."""
        return sum(int(mask.sum()) for mask in self.masks.values())


@dataclass
class VolumeAnswer:
    """One explanation and 0..k findings in a whole volume, or a refusal with its reason.

    shown: the answer about the slice that shows the findings best (of a refusal: about the
    middle slice of those refused for that reason); text and overlay are its own.
    """

    findings: list[VolumeFinding]
    refusal: RefusalReason | None
    warnings: list[str]
    volume: MedicalVolume
    shown: Answer
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """What was asked."""
        return self.shown.question

    @property
    def text(self) -> str:
        """The explanation."""
        return self.shown.text

    @property
    def model(self) -> str:
        """Name of the model that answered."""
        return self.shown.model

    @property
    def image(self) -> MedicalImage:
        """The slice that is shown."""
        return self.shown.image

    def mask(self, number: int) -> NDArray[np.bool_]:
        """(I, J, K) mask of finding `number`, from 0, in the order of the stored array."""
        return self.volume.reference.volume(self.findings[number].masks)

    def overlay(self) -> Image.Image:
        """Picture of the slice that is shown."""
        return self.shown.overlay()

    def save(
        self,
        directory: str | Path,
        stem: str | None = None,
        overwrite: bool = False,
        formats: Sequence[str] = ("nifti",),
    ) -> list[Path]:
        """Write overlay, JSON and volumes in the `formats`; see `medisee.io.write_answer`."""
        from medisee.io.writing import write_answer

        return write_answer(self, directory, stem=stem, overwrite=overwrite, formats=formats)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; masks as COCO RLE of each slice as shown."""
        return {
            "schema": VOLUME_SCHEMA,
            "question": self.question,
            "text": self.text,
            "refusal": None if self.refusal is None else self.refusal.value,
            "findings": [self._finding_dict(finding) for finding in self.findings],
            "warnings": list(self.warnings),
            "volume": self._volume_dict(),
            "model": self.model,
            "seconds": {phase: round(s, 4) for phase, s in self.seconds.items()},
        }

    def _volume_dict(self) -> dict[str, Any]:
        place = self.volume.reference
        spacing = self.image.spacing
        return {
            "source": self.volume.source,
            "shape": list(place.shape),
            "axis": place.axis,
            "plane": self.volume.plane,
            "slices": len(self.volume),
            "shown_slice": self.image.reference and self.image.reference.index,
            "modality": self.image.modality,
            "spacing_mm": None if spacing is None else [float(s) for s in spacing],
            "notes": list(self.volume.notes),
        }

    def _finding_dict(self, finding: VolumeFinding) -> dict[str, Any]:
        voxel = self.volume.voxel_mm3
        return {
            "label": finding.label,
            "score": round(finding.score, 4),
            "voxels": finding.voxels,
            "volume_mm3": None if voxel is None else round(finding.voxels * voxel, 2),
            "largest_slice": finding.largest,
            "slices": [
                {
                    "index": index,
                    "score": round(finding.scores[index], 4),
                    "area_px": int(mask.sum()),
                    "mask": encode_rle(mask),
                }
                for index, mask in sorted(finding.masks.items())
            ],
        }


def findings_of(answer: Answer | VolumeAnswer) -> list[VolumeFinding]:
    """The findings on the slices of their source; of an `Answer`, on its single slice."""
    if isinstance(answer, VolumeAnswer):
        return answer.findings
    place = answer.image.reference
    index = 0 if place is None else place.index
    return [
        VolumeFinding(finding.label, {index: finding.mask}, {index: finding.score})
        for finding in answer.findings
    ]
