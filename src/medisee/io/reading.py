"""One door for every image: `read_image`. The format is told from the content, never guessed."""

from __future__ import annotations

import gzip
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Union

import numpy as np
from numpy.typing import NDArray

from medisee.errors import InputError, MediSeeError
from medisee.io.display import Window, parse_window
from medisee.io.hiding import ANNOTATIONS, hide_boxes, parse_hide
from medisee.io.reference import SourceFile
from medisee.io.request import Limits, Plane, ReadRequest
from medisee.io.volume import MedicalVolume
from medisee.structures import MedicalImage

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["EXAMPLE_PREFIX", "ImageSource", "holds_volume", "open_volume", "read_image"]

ImageSource = Union[str, "PathLike[str]", bytes, "Image.Image", NDArray[Any], MedicalImage]
"""A path, `example:NAME`, a file's bytes, a PIL image, an array (H, W) or (H, W, 3)."""

EXAMPLE_PREFIX = "example:"
Kind = Literal["raster", "dicom", "nifti", "gzip", "zip"]

_READABLE = "PNG, JPEG, TIFF, BMP, WebP, DICOM and NIfTI"
_SPOOLED_BYTES = 1 << 28
_HEAD_BYTES = 540  # a NIfTI-2 header, the longest of the signatures' places

# Formats that people do have, so that the message can name what they sent.
_STRANGERS = {
    b"GIF8": "a GIF",
    b"%PDF": "a PDF",
    b"NRRD": "an NRRD volume",
    b"ObjectType": "a MetaImage header",
    b"NDims": "a MetaImage header",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 picture",
    b"\x89HDF": "an HDF5 file",
    b"<": "a text file with markup",
}


def read_image(
    source: ImageSource,
    *,
    slice: int | None = None,
    plane: Plane | None = None,
    frame: int | None = None,
    window: str | Window | None = None,
    series: int | None = None,
    hide: Sequence[str] = (),
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> MedicalImage:
    """Read one medical image from a file, bytes, a PIL image or an array.

    source: path to a PNG, JPEG, TIFF, BMP, WebP, DICOM or single-file NIfTI (also .gz), or to a
        folder or ZIP archive with a DICOM series; the bytes of one; `example:NAME` (see
        `medisee.examples`); a PIL image; an array (H, W) or (H, W, 3); or a `MedicalImage`,
        which is given back.
    slice, plane: which slice of a volume, counted from 0 along the voxel axis nearest to the
        plane's normal; "axial", "coronal" or "sagittal" (NIfTI). Default: the middle one.
    frame: which frame of a DICOM file, volume of a NIfTI series or page of a TIFF, from 0.
    window: (centre, width) in the units of the pixels, "CENTRE,WIDTH" or a name ("lung").
    series: Series Number of the DICOM series, where a folder or archive holds several.
    hide: areas to black out, "X1,Y1,X2,Y2" in pixels, or "annotations" for all that a DICOM
        ultrasound shows outside its regions.
    limits: the most that is opened; servers set lower ones than a person at home needs.

    Raises InputError, in one line, when the source is missing, damaged, too large or of a kind
    that is not read, and when a choice is given that the source has no room for.
    """
    boxes, annotations = parse_hide(hide)
    request = ReadRequest(
        "image", slice, plane, frame, parse_window(window), limits, series, boxes, annotations
    )
    if isinstance(source, MedicalImage):
        replace(request, name=source.source).allow_only((), "an image that was read before")
        return _hidden(source, request)
    if isinstance(source, np.ndarray):
        return _hidden(_read_array(source, request), request)
    if isinstance(source, (bytes, bytearray, memoryview, str, PathLike)):
        return _read_file(*_located(source, request))
    return _hidden(_read_pil(source, request), request)


@contextmanager
def open_volume(
    source: str | PathLike[str] | bytes,
    *,
    plane: Plane | None = None,
    frame: int | None = None,
    window: str | Window | None = None,
    series: int | None = None,
    hide: Sequence[str] = (),
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Iterator[MedicalVolume]:
    """The slices of a NIfTI volume, a DICOM series (folder or ZIP) or a DICOM multi-frame file.

    Arguments as for `read_image`; each slice is read as `read_image` with its number would. The
    source stays open until the end of the block.

    Raises InputError as `read_image` does, and when the source is a single image.
    """
    boxes, annotations = parse_hide(hide)
    choices = ReadRequest(
        "volume", None, plane, frame, parse_window(window), limits, series, boxes, annotations
    )
    file, request = _located(source, choices)
    with _opened_volume(file, request) as volume:
        if volume is None:
            raise InputError(f"{request.name}: is a single image, not a volume")
        yield volume


def holds_volume(source: str | PathLike[str] | bytes) -> bool:
    """Whether `open_volume` is the door for a source: it is a folder, an archive or has slices.

    Reads no pixels. Raises InputError when the source cannot be opened.
    """
    file, request = _located(source, ReadRequest("volume"))
    kind = _kind_of(file, request)
    if kind in ("folder", "zip", "raster"):
        return kind != "raster"
    with _one_clear_line(request, kind), ExitStack() as opened:
        if kind == "dicom":
            return _find_volume(file, kind, request, opened) is not None
        from medisee.io.nifti import nifti_volume

        stream = opened.enter_context(file.open())
        unpacked = opened.enter_context(gzip.open(stream)) if kind == "gzip" else stream
        return len(nifti_volume(unpacked, request)) > 1  # type: ignore[arg-type]


def _hidden(image: MedicalImage, request: ReadRequest) -> MedicalImage:
    """The image with the areas black that were asked to be; a DICOM reader has seen to the rest."""
    place = image.reference
    if request.hide_annotations and (place is None or place.kind != "dicom"):
        raise InputError(f"{image.source}: only DICOM states where {ANNOTATIONS} are; name areas")
    return hide_boxes(image, request.hide)


def _located(
    source: str | PathLike[str] | bytes | bytearray | memoryview, request: ReadRequest
) -> tuple[SourceFile, ReadRequest]:
    """What to open, and what messages and results call it."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        file, name = SourceFile(bytes(source)), request.name
    elif isinstance(source, str) and source.startswith(EXAMPLE_PREFIX):
        from medisee.examples import example_path

        name = source.removeprefix(EXAMPLE_PREFIX)
        file = SourceFile(example_path(name))
    else:
        if not str(source):  # would be the current folder
            raise InputError("'': cannot be opened (not a file name)")
        file, name = SourceFile(Path(source)), Path(source).name or Path(source).resolve().name
    return file, replace(request, name=name, file=file)


def _read_file(file: SourceFile, request: ReadRequest) -> MedicalImage:
    """One image; of a volume the slice that was asked for, else the middle one."""
    kind = _kind_of(file, request)
    if kind in ("folder", "zip") or (kind == "dicom" and request.slice is not None):
        with _opened_volume(file, request) as volume:
            if volume is not None:
                return volume[request.pick("slice", len(volume), default=len(volume) // 2)]
    with file.open() as stream:
        return _hidden(_read_stream(stream, request), request)


def _kind_of(file: SourceFile, request: ReadRequest) -> str:
    if isinstance(file.place, Path):
        with suppress(OSError, ValueError):  # of no file name; opening it says what is wrong
            if file.place.is_dir():
                return "folder"
    with file.open() as stream:
        return _detect(_head(stream), request)


@contextmanager
def _opened_volume(file: SourceFile, request: ReadRequest) -> Iterator[MedicalVolume | None]:
    """The slices in a source; None when it is a single image."""
    kind = _kind_of(file, request)
    with ExitStack() as opened:
        with _one_clear_line(request, kind):
            volume = _find_volume(file, kind, request, opened)

        def read(index: int) -> MedicalImage:
            with _one_clear_line(request, kind):
                return _hidden(volume.read(index), request)  # type: ignore[union-attr]

        # What goes wrong in the caller's block is not the file's fault.
        yield volume and replace(volume, read=read)


def _find_volume(
    file: SourceFile, kind: str, request: ReadRequest, opened: ExitStack
) -> MedicalVolume | None:
    if kind in ("folder", "zip"):
        from medisee.io.series import folder_files, series_volume, zip_members

        files = zip_members(file, request) if kind == "zip" else folder_files(file.place)  # type: ignore[arg-type]
        return series_volume(files, request)
    if kind == "dicom":
        from medisee.io.series import frames_volume

        return frames_volume(file, request)
    if kind in ("nifti", "gzip"):
        from medisee.io.nifti import nifti_volume

        stream = opened.enter_context(file.open())
        unpacked = opened.enter_context(_spooled(stream, request)) if kind == "gzip" else stream
        return nifti_volume(unpacked, request)
    return None


def _read_array(array: NDArray[Any], request: ReadRequest) -> MedicalImage:
    from medisee.io.raster import from_array

    request.allow_only({"window"}, "an array")
    return from_array(array, request)


def _read_pil(image: Any, request: ReadRequest) -> MedicalImage:
    from PIL import Image

    from medisee.io.raster import from_pil

    if not isinstance(image, Image.Image):
        raise InputError(
            "an image is a path, bytes, a PIL image, a numpy array or a MedicalImage, "
            f"not {type(image).__name__}"
        )
    with _one_clear_line(request, "picture"):
        return from_pil(image, request)


def _read_stream(stream: BinaryIO, request: ReadRequest) -> MedicalImage:
    kind = _detect(_head(stream), request)
    if kind == "gzip":
        with _one_clear_line(request, "gzip"), gzip.open(stream, "rb") as unpacked:
            if _detect(_head(unpacked), request) != "nifti":
                raise InputError(f"{request.name}: holds no NIfTI volume; unpack it first")
            return _read_kind("nifti", unpacked, request)  # type: ignore[arg-type]
    return _read_kind(kind, stream, request)


def _read_kind(kind: str, stream: BinaryIO, request: ReadRequest) -> MedicalImage:
    with _one_clear_line(request, kind):
        if kind == "dicom":
            from medisee.io.dicom import read_dicom

            return read_dicom(stream, request)
        if kind == "nifti":
            from medisee.io.nifti import read_nifti

            return read_nifti(stream, request)
        from medisee.io.raster import read_raster

        return read_raster(stream, request)


@contextmanager
def _spooled(packed: BinaryIO, request: ReadRequest) -> Iterator[BinaryIO]:
    """What a gzip file unpacks to, where slices can be reached at once; large ones on disk."""
    most = request.limits.unpacked_bytes
    with tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as spool, gzip.open(packed) as unpacked:
        copied = 0
        while block := unpacked.read(1 << 20):
            copied += len(block)
            if copied > most:
                raise InputError(f"{request.name}: unpacks to more than {most >> 20:,} MiB")
            spool.write(block)
        spool.seek(0)
        if _detect(_head(spool), request) != "nifti":
            raise InputError(f"{request.name}: holds no NIfTI volume; unpack it first")
        yield spool  # type: ignore[misc]


def _head(stream: Any) -> bytes:
    head: bytes = stream.read(_HEAD_BYTES)
    stream.seek(0)
    return head


def _detect(head: bytes, request: ReadRequest) -> Kind:
    """Tell the format from its signature; refuse what is none of ours."""
    if not head:
        raise InputError(f"{request.name}: the file is empty")
    if head[128:132] == b"DICM":
        return "dicom"
    if head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0":
        return "nifti"
    if head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
        raise InputError(f"{request.name}: a .hdr/.img pair; convert it to one .nii file first")
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if _is_raster(head):
        return "raster"
    raise InputError(f"{request.name}: {_stranger(head)}; MediSee reads {_READABLE}")


def _is_raster(head: bytes) -> bool:
    signatures = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")
    tiff = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return head.startswith(signatures + tiff) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _stranger(head: bytes) -> str:
    if head[:2] in (b"\x08\x00", b"\x02\x00"):
        return "perhaps DICOM, but without its header (DICM at byte 128): convert it first"
    if head[4:8] == b"ftyp":
        return "is a HEIC or AVIF picture or a video"
    for signature, kind in _STRANGERS.items():
        if head.startswith(signature):
            return f"is {kind}"
    return "is not an image of a known format"


@contextmanager
def _one_clear_line(request: ReadRequest, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into one InputError.

    What decoders warn about is not passed on: pydicom quotes the values of elements, which
    belong in no log, and Pillow warns of sizes that are checked against our own limit.
    """
    name = {"raster": "picture", "dicom": "DICOM", "nifti": "NIfTI", "zip": "ZIP"}.get(kind, kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MediSeeError:
        raise
    except MemoryError as error:
        raise InputError(f"{request.name}: too large for this machine's memory") from error
    except Exception as error:
        raise InputError(
            f"{request.name}: the {name} file is damaged or incomplete; export or copy it again"
        ) from error
