"""One slice of a NIfTI volume, turned the way radiologists look at it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medisee.errors import InputError
from medisee.io.display import grey_to_rgb, looks_like_hounsfield, render_grey
from medisee.io.orientation import RADIOLOGICAL, directions_of, to_display
from medisee.io.request import ReadRequest
from medisee.structures import Direction, MedicalImage, Orientation

__all__ = ["read_nifti"]

MAX_VOLUME_BYTES = 4 << 30
"""Largest volume that is opened: a packed file must be unpacked up to the slice."""

_UNIT_MM = {"meter": 1000.0, "micron": 0.001}
_AXIS_OF_PLANE = {"axial": "HF", "coronal": "AP", "sagittal": "RL"}
# Above this ratio of thickest to thinnest, slices across the thick axis are what was acquired.
_ANISOTROPIC = 1.5


def read_nifti(stream: BinaryIO, request: ReadRequest) -> MedicalImage:
    """Read one slice from an open (and already unpacked) single-file NIfTI-1 or NIfTI-2.

    `request.plane` defaults to the plane that was acquired (across the thickest voxel axis;
    axial when voxels are about equal-sided), `slice` to the middle one, `frame` to the first
    volume of a series. Where the file states no orientation, slices go along the last axis.
    """
    request.allow_only({"slice", "plane", "frame", "window"}, "a NIfTI volume")
    image = _open(stream, request)
    shape = image.shape[:3] + (1,) * (3 - len(image.shape))
    directions = _stated_directions(image)
    size_mm = _voxel_size(image)
    axis, plane = _slice_axis(request, directions, size_mm, shape)
    index = request.pick("slice", shape[axis], default=shape[axis] // 2)
    volume, volumes = _volume_index(image, request)

    flat = _take(image, axis, index, volume)
    rows, columns = (i for i in range(3) if i != axis)
    turned, orientation, spacing = _turn(
        flat,
        None if directions is None else (directions[rows], directions[columns]),
        (size_mm[rows], size_mm[columns]),
        plane,
    )
    display, rendering = _display(turned, request)
    notes = (
        f"{plane or 'last axis'}: slice {index} of {shape[axis]}, counted from 0",
        f"frame {volume} of {volumes}, counted from 0" if volumes > 1 else "",
        "the file states no orientation: left and right are unknown" if directions is None else "",
        rendering,
    )
    return MedicalImage(
        pixels=turned,
        display=display,
        modality=None,
        spacing=spacing,
        orientation=orientation,
        source=request.name,
        affine=None if directions is None else np.asarray(image.affine, dtype=np.float64),
        notes=tuple(note for note in notes if note),
    )


def _display(values: NDArray[Any], request: ReadRequest) -> tuple[NDArray[np.uint8], str]:
    request.check_size(*values.shape)
    if not np.isfinite(values).any():
        raise InputError(f"{request.name}: none of the slice's pixels is a number")
    hounsfield = looks_like_hounsfield(values)
    grey, rendering = render_grey(values, request.window, hounsfield=hounsfield)
    return grey_to_rgb(grey), rendering


def _open(stream: BinaryIO, request: ReadRequest) -> Any:
    import nibabel
    from nibabel.imageglobals import LoggingOutputSuppressor

    head = stream.read(4)
    stream.seek(0)
    second = head in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    with LoggingOutputSuppressor():  # it mends headers aloud
        image = kind.from_stream(stream)
    if not 2 <= len(image.shape) <= 4 or min(image.shape) < 1:
        raise InputError(f"{request.name}: a volume has 2 to 4 dimensions, not {image.shape}")
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise InputError(f"{request.name}: voxels must be plain numbers, not {dtype}")
    # Python integers: a forged header's sizes would overflow numpy's.
    voxels = 1
    for length in image.shape:
        voxels *= int(length)
    if voxels * dtype.itemsize > MAX_VOLUME_BYTES:
        raise InputError(f"{request.name}: the volume is larger than {MAX_VOLUME_BYTES >> 30} GiB")
    return image


def _stated_directions(image: Any) -> tuple[Direction, ...] | None:
    """Direction of each voxel axis; None when neither sform nor qform is set."""
    if image.header["sform_code"] <= 0 and image.header["qform_code"] <= 0:
        return None
    return directions_of(image.affine[:3, :3])


def _voxel_size(image: Any) -> tuple[float, float, float]:
    """Edge lengths in mm along the three voxel axes; 0 where the file has none."""
    unit = _UNIT_MM.get(image.header.get_xyzt_units()[0], 1.0)
    lengths = np.linalg.norm(image.affine[:3, :3], axis=0) * unit
    return tuple(float(x) if np.isfinite(x) else 0.0 for x in lengths)  # type: ignore[return-value]


def _slice_axis(
    request: ReadRequest,
    directions: Sequence[Direction] | None,
    size_mm: Sequence[float],
    shape: Sequence[int],
) -> tuple[int, str | None]:
    """The voxel axis that the slices are stacked along, and their plane."""
    if request.plane is not None and request.plane not in RADIOLOGICAL:
        raise InputError(f"a plane is one of: {', '.join(RADIOLOGICAL)}")
    if directions is None:
        if request.plane is not None:
            raise InputError(
                f"{request.name}: the file states no orientation, so its planes are unknown; "
                "leave the plane out to slice along the last axis"
            )
        return 2, None
    plane_of_axis = [
        next(plane for plane, letters in _AXIS_OF_PLANE.items() if letter in letters)
        for letter in directions
    ]
    thick = max(range(3), key=lambda i: (shape[i] == 1, size_mm[i]))
    layered = shape[thick] == 1 or size_mm[thick] > _ANISOTROPIC * min(size_mm)
    plane = request.plane or (plane_of_axis[thick] if layered else "axial")
    return plane_of_axis.index(plane), plane


def _volume_index(image: Any, request: ReadRequest) -> tuple[int, int]:
    volumes = image.shape[3] if len(image.shape) == 4 else 1
    return request.pick("frame", volumes, default=0), volumes


def _take(image: Any, axis: int, index: int, volume: int) -> NDArray[Any]:
    """The slice as stored (rescaled), read without loading the rest of the volume."""
    cut: list[Any] = [slice(None)] * len(image.shape)
    if axis < len(cut):
        cut[axis] = index
    if len(cut) == 4:
        cut[3] = volume
    values = np.asarray(image.dataobj[tuple(cut)])
    if len(image.shape) == 2 and axis != 2:  # a flat file asked for a plane across it
        values = values[:, None]
    native = values.dtype.newbyteorder("=")
    return values.astype(np.float32 if values.dtype.kind == "f" else native)


def _turn(
    flat: NDArray[Any],
    directions: tuple[Direction, Direction] | None,
    size_mm: tuple[float, float],
    plane: str | None,
) -> tuple[NDArray[Any], Orientation | None, tuple[float, float] | None]:
    """The slice in radiological display, its orientation, and its (row, column) spacing."""
    if directions is None or plane is None:
        # Like a volume in NIfTI's default LAS+ grid, which is how viewers show it.
        turned, orientation, spacing = flat.T[::-1], None, size_mm[::-1]
    else:
        orientation = RADIOLOGICAL[plane]
        turned = to_display(flat, *directions, orientation)
        swapped = directions[0] not in (orientation.top, orientation.bottom)
        spacing = size_mm[::-1] if swapped else size_mm
    known = min(spacing) > 0
    return np.ascontiguousarray(turned), orientation, spacing if known else None
