"""A stack of slices: read one by one, each exactly as it would be read alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from medisee.io.reference import SourceReference
from medisee.structures import MedicalImage

__all__ = ["MedicalVolume"]


@dataclass(frozen=True, eq=False)
class MedicalVolume:
    """The slices of one volume, in order along `axis` of the stored array.

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
