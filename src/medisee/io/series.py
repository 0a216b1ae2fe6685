"""DICOM slices that belong together: files of a folder or ZIP archive, or frames of one file.

Coordinates decide the order and what belongs together, never file names.
"""

from __future__ import annotations

import os
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medisee.errors import InputError
from medisee.io.dicom import flatten_groups, not_an_image, read_dicom, read_header
from medisee.io.dicom_geometry import affine_of, even_step, orientation_of, position_of
from medisee.io.reference import SourceFile, SourceReference
from medisee.io.request import ReadRequest
from medisee.io.volume import MedicalVolume
from medisee.structures import MedicalImage

__all__ = ["folder_files", "frames_volume", "series_volume", "stacks", "zip_members"]

_TAGS = [
    *("SeriesInstanceUID", "SeriesNumber", "SOPInstanceUID", "InstanceNumber", "Modality"),
    *("Rows", "Columns", "NumberOfFrames", "PixelSpacing", "SliceThickness"),
    *("ImageOrientationPatient", "ImagePositionPatient", "SpacingBetweenSlices"),
]
_NUMBERED = "slices are in the order of their numbers: the files do not state their places"
_UNEVEN = "slices are not evenly spaced: lengths across them are unknown"


@dataclass(frozen=True)
class _Slice:
    """One frame of one file, with the header that says where it lies."""

    file: SourceFile
    header: Any
    frame: int = 0

    @property
    def place(self) -> float | None:
        """Millimetres along the normal of its plane."""
        position, cosines = position_of(self.header), self.header.get("ImageOrientationPatient")
        if position is None or orientation_of(self.header) is None or cosines is None:
            return None
        across = np.asarray([float(c) for c in cosines]).reshape(2, 3)
        return float(np.cross(across[0], across[1]) @ position)

    @property
    def number(self) -> int:
        return int(self.header.get("InstanceNumber") or 0)


def series_volume(files: Iterable[SourceFile], request: ReadRequest) -> MedicalVolume:
    """The slices of a series: `request.series` by its number, else the one with most images.

    Files that are no DICOM images are passed over. Where several images lie at each place,
    `request.frame` names the volume, in the order of instance numbers (default: the first).

    Raises InputError when there is no image, or no such series.
    """
    request.allow_only({"slice", "frame", "window", "series"}, "a DICOM series")
    found = stacks(files, request)
    if request.series is not None:
        numbers = sorted({_series_number(stack) for stack in found})
        found = [stack for stack in found if _series_number(stack) == request.series]
        if not found:
            known = ", ".join(map(str, numbers[:20]))
            raise InputError(f"{request.name}: series {request.series} is not there; {known} are")
    if not found:
        raise InputError(
            f"{request.name}: holds no DICOM image; name one image file, or a folder with a series"
        )
    notes = []
    if len(found) > 1:
        number = _series_number(found[0])
        notes.append(f"series {number}, which has the most images of {len(found)}; --series N")
    return _volume(found[0], request, notes)


def stacks(files: Iterable[SourceFile], request: ReadRequest) -> list[list[_Slice]]:
    """Images of one series, size and plane together; the stack with most images first."""
    groups: dict[Any, list[_Slice]] = defaultdict(list)
    for count, file in enumerate(files):
        request.check_frames(count)
        header = _header_of(file)
        if header is not None:
            groups[_belongs_to(header)].append(_Slice(file, header))
    return sorted(groups.values(), key=lambda stack: (-len(stack), _series_number(stack)))


def frames_volume(file: SourceFile, request: ReadRequest) -> MedicalVolume | None:
    """The frames of one file as slices, where it states the place of each; else None."""
    from pydicom import Dataset

    with file.open() as stream:
        header = read_header(stream, request)
    count = int(header.get("NumberOfFrames") or 1)
    if count < 2 or len(header.get("PerFrameFunctionalGroupsSequence") or ()) != count:
        return None
    request.check_frames(count)
    slices = []
    for frame in range(count):
        own = Dataset()  # header.copy() would share its elements
        own.update(header)
        flatten_groups(own, frame)
        slices.append(_Slice(file, own, frame))
    if any(each.place is None for each in slices):
        return None
    return _volume(slices, request, [])


def zip_members(archive: SourceFile, request: ReadRequest) -> Iterator[SourceFile]:
    """The files of a ZIP archive, read in memory; nothing is unpacked to disk.

    Raises InputError when they unpack to more than the limit, or are encrypted.
    """
    with archive.open() as stream, zipfile.ZipFile(stream) as opened:
        members = [info for info in opened.infolist() if not info.is_dir()]
    request.check_frames(len(members))
    if sum(info.file_size for info in members) > request.limits.unpacked_bytes:
        most = request.limits.unpacked_bytes >> 20
        raise InputError(f"{request.name}: unpacks to more than {most:,} MiB")
    if any(info.flag_bits & 1 for info in members):
        raise InputError(f"{request.name}: is encrypted; unpack it first")
    return (SourceFile(archive.place, info.filename) for info in members)


def folder_files(folder: Path) -> Iterator[SourceFile]:
    """The files below a folder, in the order of their names; links to folders are not followed."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        paths = (Path(where) / name for name in sorted(names))
        yield from (SourceFile(path) for path in paths if path.is_file())


def _header_of(file: SourceFile) -> Any:
    """What is needed to sort a file into a stack; None when it is no DICOM image."""
    import pydicom

    with file.open() as stream:
        if stream.read(132)[128:] != b"DICM":
            return None
        stream.seek(0)
        try:
            header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS)
            usable = header.get("Rows") and header.get("Columns") and not not_an_image(header)
        except Exception:  # noqa: BLE001 - a damaged file among others is not part of a stack
            return None
    return header if usable else None


def _belongs_to(header: Any) -> tuple[Any, ...]:
    cosines = header.get("ImageOrientationPatient") or ()
    return (
        str(header.get("SeriesInstanceUID", "")),
        int(header.Rows),
        int(header.Columns),
        tuple(round(float(c), 2) + 0.0 for c in cosines),
    )


def _series_number(stack: Sequence[_Slice]) -> int:
    return int(stack[0].header.get("SeriesNumber") or 0)


def _volume(stack: list[_Slice], request: ReadRequest, notes: list[str]) -> MedicalVolume:
    if len(stack) == 1 and int(stack[0].header.get("NumberOfFrames") or 1) > 1:
        inside = frames_volume(stack[0].file, replace(request, series=None, frame=None))
        if inside is not None:
            return replace(inside, notes=(*inside.notes, *notes))
        raise InputError(f"{request.name}: the file's frames are no volume; name the file itself")
    slices, more = _ordered(stack, request)
    affine, uneven = _affine(slices)
    header = slices[0].header
    orientation = orientation_of(header)
    reference = SourceReference(
        "dicom",
        tuple(dict.fromkeys(each.file for each in slices)),
        (int(header.Rows), int(header.Columns), len(slices)),
        axis=2,
        index=0,
        frames=tuple(each.frame for each in slices),
        uids=tuple(dict.fromkeys(str(s.header.get("SOPInstanceUID", "")) for s in slices)),
    )
    alone = replace(request, slice=None, series=None)
    return MedicalVolume(
        source=request.name,
        plane=None if orientation is None else orientation.plane,
        reference=reference,
        affine=affine,
        notes=tuple(note for note in (*notes, *more, uneven) if note),
        read=lambda index: _read_slice(slices, index, alone),
    )


def _ordered(stack: list[_Slice], request: ReadRequest) -> tuple[list[_Slice], list[str]]:
    """One slice for each place, from the patient's far end of the normal to the near one."""
    if any(each.place is None for each in stack):
        request.allow_only({"slice", "window", "series"}, "a series that states no places")
        return sorted(stack, key=lambda each: each.number), [_NUMBERED]
    places: dict[float, list[_Slice]] = defaultdict(list)
    for each in stack:
        places[round(each.place or 0.0, 2)].append(each)
    counts = {len(here) for here in places.values()}
    if len(counts) > 1:
        raise InputError(
            f"{request.name}: several images lie at some places and not at others; "
            "put the images of one volume into a folder of their own"
        )
    times = counts.pop()
    time = request.pick("frame", times, default=0)
    slices = [
        sorted(here, key=lambda each: (each.number, each.frame))[time]
        for _, here in sorted(places.items())
    ]
    return slices, [f"frame {time} of {times}, counted from 0"] if times > 1 else []


def _affine(slices: list[_Slice]) -> tuple[NDArray[np.float64] | None, str]:
    """(4, 4) from (row, column, slice) to RAS+ mm, and a note where there is none for a reason."""
    first = slices[0].header
    if len(slices) == 1 or affine_of(first) is None:
        return affine_of(first), ""
    positions = [position_of(each.header) for each in slices]
    pixel = min(float(value) for value in first.PixelSpacing)
    step = even_step([p for p in positions if p is not None], pixel)
    return (None, _UNEVEN) if step is None else (affine_of(first, step), "")


def _read_slice(slices: list[_Slice], index: int, request: ReadRequest) -> MedicalImage:
    wanted = slices[index]
    several = int(wanted.header.get("NumberOfFrames") or 1) > 1
    chosen = replace(request, frame=wanted.frame if several else None)
    with wanted.file.open() as stream:
        image = read_dicom(stream, chosen)
    note = f"slice {index} of {len(slices)}, counted from 0"
    places = {"slice": (index, len(slices))}
    return replace(image, notes=(note, *image.notes), places=places)
