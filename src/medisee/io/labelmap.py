"""Label maps: all findings of an answer in one array of numbers, as viewers take them."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medisee.io.volume import VolumeAnswer, findings_of
from medisee.structures import Answer

__all__ = ["UNNAMED", "LabelMap", "encode_labels", "label_map", "labels_of"]

LabelMap = tuple[NDArray[np.uint8], NDArray[np.float64]]
"""(I, J, K) numbers, 0 outside, and (4, 4) from index to RAS+ mm."""

UNNAMED = "finding"
"""Stands for the label of a finding that nobody named."""

_PICTURE = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Where viewers put what states no place: 1 mm pixels, columns to the left, rows to the back."""


def labels_of(answer: Answer | VolumeAnswer) -> list[str]:
    """The labels of an answer's findings, each once, in their order."""
    return list(dict.fromkeys(finding.label or UNNAMED for finding in findings_of(answer)))


def label_map(answer: Answer | VolumeAnswer, values: Mapping[str, int]) -> LabelMap:
    """The findings on the grid of their source; the surest one where they overlap.

    values: the number, 1 to 255, of each label. A NIfTI source keeps its axes; those of DICOM and
    of pictures are columns, rows, slices.
    """
    image, place = answer.image, answer.image.reference
    shape = (image.height, image.width, 1) if place is None else place.shape
    painted = np.zeros(shape, np.uint8)
    for finding in sorted(findings_of(answer), key=lambda each: each.score):
        mask = finding.masks[0][..., None] if place is None else place.volume(finding.masks)
        painted[mask] = values[finding.label or UNNAMED]
    if place is not None and place.kind == "nifti":
        return painted, _PICTURE if image.affine is None else image.affine
    affine = _PICTURE if image.affine is None else image.affine[:, [1, 0, 2, 3]]
    return painted.transpose(1, 0, 2), affine


def encode_labels(
    labels: LabelMap, extension: Literal[".nrrd", ".nii", ".nii.gz"], compress: bool = True
) -> bytes:
    """The file of a label map. `compress` is for NRRD; NIfTI's extension says it."""
    if extension == ".nrrd":
        return _nrrd(*labels, compress)
    import nibabel

    image = nibabel.Nifti1Image(*labels)
    image.header.set_xyzt_units("mm")
    data: bytes = image.to_bytes()
    return gzip.compress(data, 1, mtime=0) if extension == ".nii.gz" else data


def _nrrd(voxels: NDArray[np.uint8], affine: NDArray[np.float64], compress: bool) -> bytes:
    """NRRD 4, https://teem.sourceforge.net/nrrd/format.html; the first axis is the fastest."""
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    columns = ["(" + ",".join(repr(float(x)) for x in column) + ")" for column in lps.T]
    lines = [
        "NRRD0004",
        "type: uint8",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, voxels.shape))}",
        f"space directions: {' '.join(columns[:3])}",
        "kinds: domain domain domain",
        f"encoding: {'gzip' if compress else 'raw'}",
        f"space origin: {columns[3]}",
    ]
    data = voxels.tobytes(order="F")
    head = "\n".join(lines).encode("ascii") + b"\n\n"
    return head + (gzip.compress(data, 1, mtime=0) if compress else data)
