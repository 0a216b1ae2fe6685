"""Slices of a NIfTI volume, turned the way radiologists look at them; masks back to its grid."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medisee.errors import InputError
from medisee.io.display import grey_to_rgb, looks_like_hounsfield, render_grey
from medisee.io.orientation import RADIOLOGICAL, Turn, directions_of
from medisee.io.reference import SourceReference
from medisee.io.request import ReadRequest
from medisee.io.volume import MedicalVolume
from medisee.structures import Direction, MedicalImage

__all__ = ["encode_nifti", "nifti_volume", "read_nifti", "unpacked"]

_UNIT_MM = {"meter": 1000.0, "micron": 0.001}
_AXIS_OF_PLANE = {"axial": "HF", "coronal": "AP", "sagittal": "RL"}
# Above this ratio of thickest to thinnest, slices across the thick axis are what was acquired.
_ANISOTROPIC = 1.5


def read_nifti(stream: BinaryIO, request: ReadRequest) -> MedicalImage:
    """Read one slice: `request.slice` of the volume, by default the middle one."""
    volume = nifti_volume(stream, request)
    return volume[request.pick("slice", len(volume), default=len(volume) // 2)]


def nifti_volume(stream: BinaryIO, request: ReadRequest) -> MedicalVolume:
    """The slices of an open (and already unpacked) single-file NIfTI-1 or NIfTI-2.

    `request.plane` defaults to the plane that was acquired (across the thickest voxel axis;
    axial when voxels are about equal-sided), `frame` to the first volume of a series. Where the
    file states no orientation, slices go along the last axis. `stream` must stay open.
    """
    request.allow_only({"slice", "plane", "frame", "window"}, "a NIfTI volume")
    image = _open(stream, request)
    shape = tuple(map(int, image.shape[:3])) + (1,) * (3 - len(image.shape))
    directions = _stated_directions(image)
    axis, plane = _slice_axis(request, directions, _voxel_size(image), shape)
    volume, volumes = _volume_index(image, request)
    known = directions is not None
    notes = (
        f"frame {volume} of {volumes}, counted from 0" if volumes > 1 else "",
        "" if known else "the file states no orientation: left and right are unknown",
    )
    files = () if request.file is None else (request.file,)
    stack = MedicalVolume(
        source=request.name,
        plane=plane,
        reference=SourceReference("nifti", files, shape, axis, 0, _turn(directions, axis, plane)),  # type: ignore[arg-type]
        affine=np.asarray(image.affine, dtype=np.float64) if known else None,
        notes=tuple(note for note in notes if note),
        read=lambda index: _read_slice(image, stack, index, (volume, volumes), request),
    )
    return stack


def _read_slice(
    image: Any, stack: MedicalVolume, index: int, frame: tuple[int, int], request: ReadRequest
) -> MedicalImage:
    place = stack.reference
    flat = _take(image, place.axis, index, frame[0])
    shown = np.ascontiguousarray(place.turn.show(flat))
    display, rendering = _display(shown, request)
    first = f"{stack.plane or 'last axis'}: slice {index} of {len(stack)}, counted from 0"
    return MedicalImage(
        pixels=shown,
        display=display,
        modality=None,
        spacing=_spacing(image, place),
        orientation=None if stack.plane is None else RADIOLOGICAL[stack.plane],
        source=request.name,
        notes=tuple(note for note in (first, *stack.notes, rendering) if note),
        places={"slice": (index, len(stack)), "frame": frame},
    )


def encode_nifti(
    masks: Mapping[int, NDArray[Any]],
    reference: SourceReference,
    affine: NDArray[np.float64] | None,
) -> bytes:
    """Masks (H, W) by slice as a uint8 volume on the grid of their source, 1 inside; gzipped.

    A NIfTI source's affines, codes and units are copied bit for bit; nothing else of its header
    is, as the rest may tell who the patient is. Of a DICOM source `affine` is written.
    """
    import nibabel

    voxels = reference.volume(masks).astype(np.uint8)
    if reference.kind == "nifti":
        with reference.files[0].open() as packed, unpacked(packed) as stream:
            source = _open(stream, ReadRequest("the NIfTI source"))
            voxels = voxels.reshape(source.shape[:3])
            image = type(source)(voxels, None, _geometry_of(source.header, type(source)))
    else:
        image = nibabel.Nifti1Image(voxels, affine)
        image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 6, mtime=0)


_GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


def _geometry_of(source: Any, kind: Any) -> Any:
    """A fresh header for a mask, with what the source's says about where voxels lie."""
    header = kind.header_class(endianness=source.endianness)
    header.set_data_dtype(np.uint8)
    dimensions = min(int(source["dim"][0]), 3)
    header.set_data_shape(tuple(int(n) for n in source["dim"][1 : dimensions + 1]))
    header["pixdim"][: dimensions + 1] = source["pixdim"][: dimensions + 1]
    for name in _GEOMETRY:
        header[name] = source[name]
    return header


@contextmanager
def unpacked(stream: BinaryIO) -> Iterator[BinaryIO]:
    """The stream itself, or what it unpacks to where it is gzip."""
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    if not packed:
        yield stream
        return
    with gzip.open(stream, "rb") as inner:
        yield inner  # type: ignore[misc]


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
    most = request.limits.unpacked_bytes
    if voxels * dtype.itemsize > most:
        raise InputError(f"{request.name}: the volume is larger than {most / 2**30:g} GiB")
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


def _turn(directions: Sequence[Direction] | None, axis: int, plane: str | None) -> Turn:
    """From the stored slice to radiological display."""
    if directions is None or plane is None:
        # Like a volume in NIfTI's default LAS+ grid, which is how viewers show it.
        return Turn(swap=True, flip_rows=True)
    rows, columns = (i for i in range(3) if i != axis)
    return Turn.towards(RADIOLOGICAL[plane], directions[rows], directions[columns])


def _spacing(image: Any, place: SourceReference) -> tuple[float, float] | None:
    """(row, column) in mm of a slice as shown."""
    size_mm = _voxel_size(image)
    rows, columns = (i for i in range(3) if i != place.axis)
    spacing = (size_mm[rows], size_mm[columns])
    if min(spacing) <= 0:
        return None
    return spacing[::-1] if place.turn.swap else spacing
