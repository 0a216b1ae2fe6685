"""Labelled volumes to slices: which ones, turned as radiologists look, in which window.

A volume and its masks are first brought to one grid whose axes grow towards the patient's right,
front and head, each by its own affine. From there on an axial slice is an axial slice, and left is
left, however the files were stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medisee.data.importers.classes import ClassTable, body_part_of
from medisee.data.importers.options import ImportOptions
from medisee.data.importers.units import Context, LabelledMask, Sample, damaged
from medisee.errors import DataError
from medisee.io import WINDOWS, read_image
from medisee.io.display import looks_like_hounsfield, render_grey
from medisee.io.orientation import RADIOLOGICAL, directions_of, to_display
from medisee.structures import Direction

__all__ = ["Grid", "Region", "choose_slices", "read_grid", "regions_of", "samples_of", "to_square"]

_AXES: tuple[tuple[Direction, Direction], ...] = (("R", "L"), ("A", "P"), ("H", "F"))
_AXIS_OF_PLANE = {"sagittal": 0, "coronal": 1, "axial": 2}
_WINDOW_OF_PART = {
    "brain": "brain",
    "chest": "mediastinum",
    "heart": "mediastinum",
    "liver": "liver",
    "spine": "bone",
    "cervical spine": "bone",
    "lumbar spine": "bone",
    "teeth": "bone",
    "foot": "bone",
}
_LEAST_GAIN = 0.25  # a further slice must show that much more of one class than the ones before
_SQUARE = 1.02  # pixels whose sides differ by less are left as they are


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxels (X, Y, Z) that grow towards R, A, H, their size in mm and their affine (RAS+)."""

    voxels: NDArray[Any]
    affine: NDArray[np.float64]
    plane: str = "axial"

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def fits(self, other: Grid) -> bool:
        """Whether the other's voxels lie where these do, to a tenth of a voxel at the corners."""
        if self.voxels.shape[:3] != other.voxels.shape[:3]:
            return False
        corner = np.array([*self.voxels.shape[:3], 1.0]) - np.array([1.0, 1.0, 1.0, 0.0])
        ends = np.stack([np.array([0.0, 0.0, 0.0, 1.0]), corner], axis=1)
        apart = np.abs(self.affine @ ends - other.affine @ ends)[:3]
        return bool((apart < 0.1 * max(self.size_mm) + 1e-3).all())


@dataclass(frozen=True, eq=False)
class Region:
    """The voxels of one class: bool crop, and where it begins on the volume's grid."""

    label: str
    start: tuple[int, int, int]
    crop: NDArray[np.bool_]
    file: str

    def areas(self, axis: int, length: int) -> NDArray[np.int64]:
        """Voxels of the class in each of the slices across `axis`."""
        found = np.zeros(length, np.int64)
        others = tuple(i for i in range(3) if i != axis)
        found[self.start[axis] : self.start[axis] + self.crop.shape[axis]] = self.crop.sum(others)
        return found

    def slice(self, axis: int, index: int, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """The class in one slice of the full grid; None where it has no voxel there."""
        at = index - self.start[axis]
        if not 0 <= at < self.crop.shape[axis]:
            return None
        flat = np.take(self.crop, at, axis)
        if not flat.any():
            return None
        rows, columns = (i for i in range(3) if i != axis)
        full = np.zeros((shape[rows], shape[columns]), bool)
        r, c = self.start[rows], self.start[columns]
        full[r : r + flat.shape[0], c : c + flat.shape[1]] = flat
        return full


def read_grid(path: Path, name: str) -> Grid:
    """A NIfTI file's first volume; DataError when it is damaged or states no orientation."""
    import nibabel

    try:
        shown = read_image(path)  # checks the file as for every image, and knows its plane
    except MemoryError as error:
        raise DataError(f"{name}: too large for this machine's memory") from error
    if shown.orientation is None or shown.affine is None:
        raise DataError(f"{name}: states no orientation, so left and right are unknown")
    with damaged(name):
        image = nibabel.load(path)
        voxels = np.asanyarray(image.dataobj)
        while voxels.ndim < 3:
            voxels = voxels[..., None]
        if voxels.ndim == 4:
            voxels = voxels[..., 0]
        return upright(voxels, np.asarray(image.affine, np.float64), shown.orientation.plane)


def upright(voxels: NDArray[Any], affine: NDArray[np.float64], plane: str = "axial") -> Grid:
    """Voxels (X, Y, Z) and affine with axes swapped and mirrored to grow towards R, A, H."""
    directions = directions_of(affine[:3, :3])
    if directions is None:
        raise DataError("the affine is not that of a volume")
    order = [next(i for i, d in enumerate(directions) if d in pair) for pair in _AXES]
    moved, turned = affine.copy(), voxels.transpose(order)
    moved[:, :3] = affine[:, order]
    for axis, (grows, _) in enumerate(_AXES):
        if directions[order[axis]] != grows:
            turned = np.flip(turned, axis)
            moved[:, 3] += moved[:, axis] * (turned.shape[axis] - 1)
            moved[:, axis] *= -1
    return Grid(turned, moved, plane)


def regions_of(labels: NDArray[Any], classes: dict[int, str], file: str) -> list[Region]:
    """Regions of a label map on the volume's grid: value -> label; others are left alone."""
    found = []
    for value, label in classes.items():
        inside = labels == value
        if not inside.any():
            continue
        spans = []
        for axis in range(3):
            line = np.flatnonzero(inside.any(tuple(i for i in range(3) if i != axis)))
            spans.append(slice(int(line[0]), int(line[-1]) + 1))
        x, y, z = spans
        start = (x.start, y.start, z.start)
        found.append(Region(label, start, inside[x, y, z].copy(), file))
    return found


def choose_slices(areas: NDArray[np.int64], most: int) -> list[int]:
    """Indices of up to `most` slices that together show each class near its largest area.

    areas: (classes, slices). Each step takes the slice that adds the most over all classes, each
    measured by its largest area; it ends when no class gains a quarter of that any more.
    """
    largest = areas.max(axis=1, keepdims=True)
    shares = areas[largest[:, 0] > 0] / largest[largest > 0][:, None]
    best = np.zeros((len(shares), 1))
    chosen: list[int] = []
    while len(shares) and len(chosen) < most:
        gains = np.clip(shares - best, 0, None)
        if gains.max() < _LEAST_GAIN:
            break
        index = int(gains.sum(axis=0).argmax())
        if gains[:, index].max() < _LEAST_GAIN:  # many classes a little: take the one that is left
            index = int(gains.max(axis=0).argmax())
        chosen.append(index)
        best = np.maximum(best, shares[:, [index]])
    return sorted(chosen)


def samples_of(
    name: str, volume: Grid, regions: list[Region], context: Context, **facts: str
) -> Iterator[Sample]:
    """The chosen slices of a volume; facts: fields of Sample that hold for all of them."""
    options = context.options
    plane = options.plane or volume.plane
    if plane not in _AXIS_OF_PLANE:
        raise DataError(f"a plane is one of: {', '.join(RADIOLOGICAL)}")
    axis, shape = _AXIS_OF_PLANE[plane], volume.voxels.shape
    by_label: dict[str, NDArray[np.int64]] = {}
    for region in regions:
        counted = region.areas(axis, shape[axis])
        by_label[region.label] = by_label.get(region.label, 0) + counted
    if not by_label:
        raise DataError(f"{name}: none of its classes has a voxel")
    modality = options.modality or facts.get("modality", "")
    hounsfield = modality == "CT" or (not modality and looks_like_hounsfield(volume.voxels))
    for index in choose_slices(np.stack(list(by_label.values())), options.selection.slices):
        cuts = [(region, region.slice(axis, index, shape)) for region in regions]
        labels = [region.label for region, cut in cuts if cut is not None]
        window = window_of(labels, options, context.table) if hounsfield else options.window
        values = np.take(volume.voxels, index, axis)
        grey, _ = render_grey(_native(values), window, hounsfield=hounsfield)
        turned = _turner(volume.size_mm, axis, plane)
        masks = tuple(
            LabelledMask(region.label, turned(cut, True).astype(bool), region.file)
            for region, cut in cuts
            if cut is not None
        )
        known: dict[str, Any] = {**facts, "modality": modality or ("CT" if hounsfield else "")}
        yield Sample(
            name=f"{name}_{plane[0]}{index:04d}",
            image=turned(grey, False),
            masks=masks,
            plane=plane,
            **known,
        )


def window_of(
    labels: Iterable[str], options: ImportOptions, table: ClassTable
) -> tuple[float, float]:
    """The CT window for a slice with these labels: the user's, else that of its body part."""
    labels = list(labels)
    if options.window is not None:
        return options.window
    if any("lung" in label.split() for label in labels):
        return WINDOWS["lung"]
    part = options.body_part or body_part_of(labels, table)
    return WINDOWS[_WINDOW_OF_PART.get(part, "soft-tissue")]


def to_square(image: NDArray[Any], row_mm: float, column_mm: float, flat: bool) -> NDArray[Any]:
    """(H, W[, 3]) with oblong pixels stretched to square ones; `flat` keeps the values (masks)."""
    ratio = row_mm / column_mm if min(row_mm, column_mm) > 0 else 1.0
    if 1 / _SQUARE < ratio < _SQUARE or not 1 / 20 < ratio < 20:
        return np.ascontiguousarray(image)
    height, width = image.shape[:2]
    size = (width, round(height * ratio)) if ratio > 1 else (round(width / ratio), height)
    how = Image.Resampling.NEAREST if flat else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image.astype(np.uint8)).resize(size, how))


def _turner(size_mm: tuple[float, float, float], axis: int, plane: str) -> Any:
    """A function that turns a slice across `axis` to radiological display, with square pixels."""
    rows, columns = (i for i in range(3) if i != axis)
    downwards, to_the_right = _AXES[rows][0], _AXES[columns][0]
    wanted = RADIOLOGICAL[plane]
    upright_rows = downwards in (wanted.top, wanted.bottom)
    row_mm, column_mm = size_mm[rows], size_mm[columns]
    spacing = (row_mm, column_mm) if upright_rows else (column_mm, row_mm)

    def turn(flat: NDArray[Any], values: bool) -> NDArray[Any]:
        return to_square(to_display(flat, downwards, to_the_right, wanted), *spacing, values)

    return turn


def _native(values: NDArray[Any]) -> NDArray[Any]:
    kind = np.float32 if values.dtype.kind == "f" else values.dtype.newbyteorder("=")
    return values.astype(kind)
