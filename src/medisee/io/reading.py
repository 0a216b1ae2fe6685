"""One door for every image: `read_image`. The format is told from the content, never guessed."""

from __future__ import annotations

import gzip
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Union

import numpy as np
from numpy.typing import NDArray

from medisee.errors import InputError, MediSeeError
from medisee.io.display import Window, parse_window
from medisee.io.request import Plane, ReadRequest
from medisee.structures import MedicalImage

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["EXAMPLE_PREFIX", "ImageSource", "read_image"]

ImageSource = Union[str, "PathLike[str]", bytes, "Image.Image", NDArray[Any], MedicalImage]
"""A path, `example:NAME`, a file's bytes, a PIL image, an array (H, W) or (H, W, 3)."""

EXAMPLE_PREFIX = "example:"
_READABLE = "PNG, JPEG, TIFF, BMP, WebP, DICOM and NIfTI"
_HEAD_BYTES = 540  # a NIfTI-2 header, the longest of the signatures' places

# Formats that people do have, so that the message can name what they sent.
_STRANGERS = {
    b"GIF8": "a GIF",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive or office document",
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
) -> MedicalImage:
    """Read one medical image from a file, bytes, a PIL image or an array.

    source: path to a PNG, JPEG, TIFF, BMP, WebP, DICOM or single-file NIfTI (also .gz); the
        bytes of one; `example:NAME` (see `medisee.examples`); a PIL image; an array (H, W) or
        (H, W, 3); or a `MedicalImage`, which is given back.
    slice, plane: which slice of a NIfTI volume, counted from 0 along the voxel axis nearest to
        the plane's normal; "axial", "coronal" or "sagittal". Default: the middle one.
    frame: which frame of a DICOM file, volume of a NIfTI series or page of a TIFF, from 0.
    window: (centre, width) in the units of the pixels, "CENTRE,WIDTH" or a name ("lung").

    Raises InputError, in one line, when the source is missing, damaged, too large or of a kind
    that is not read, and when a choice is given that the source has no room for.
    """
    request = ReadRequest("image", slice, plane, frame, parse_window(window))
    if isinstance(source, MedicalImage):
        replace(request, name=source.source).allow_only((), "an image that was read before")
        return source
    if isinstance(source, np.ndarray):
        return _read_array(source, request)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read_stream(io.BytesIO(source), request)
    if isinstance(source, (str, PathLike)):
        path, name = _locate(source)
        with _opened(path) as stream:
            return _read_stream(stream, replace(request, name=name))
    return _read_pil(source, request)


def _locate(source: str | PathLike[str]) -> tuple[Path, str]:
    """The file, and what messages and results call it."""
    if isinstance(source, str) and source.startswith(EXAMPLE_PREFIX):
        from medisee.examples import example_path

        name = source.removeprefix(EXAMPLE_PREFIX)
        return example_path(name), name
    return Path(source), Path(source).name


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name one image file in it")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: is not a regular file")
        stream = path.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a file name"
        raise InputError(f"{str(path)[:200]}: cannot be opened ({reason})") from error
    with stream:
        yield stream


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


def _head(stream: Any) -> bytes:
    head: bytes = stream.read(_HEAD_BYTES)
    stream.seek(0)
    return head


def _detect(head: bytes, request: ReadRequest) -> Literal["raster", "dicom", "nifti", "gzip"]:
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
    name = {"raster": "picture", "dicom": "DICOM", "nifti": "NIfTI"}.get(kind, kind)
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
