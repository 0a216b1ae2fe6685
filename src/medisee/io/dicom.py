"""One frame of a DICOM image. Only elements of the whitelist below are ever read.

The whitelist holds what describes pixels and geometry; who the patient is, when and where the
image was taken stays in the file.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medisee.errors import InputError
from medisee.io.display import (
    SOFT_TISSUE,
    apply_window,
    grey_to_rgb,
    render_grey,
    window_text,
)
from medisee.io.orientation import from_dicom_cosines
from medisee.io.raster import colour_to_8_bits
from medisee.io.request import ReadRequest
from medisee.structures import MedicalImage, Orientation

__all__ = ["read_dicom"]

MODALITIES: dict[str, str] = {
    "CT": "CT",
    "MR": "MR",
    "US": "ultrasound",
    "IVUS": "ultrasound",
    "CR": "X-ray",
    "DX": "X-ray",
    "RF": "X-ray",
    "XA": "X-ray",
    "RG": "X-ray",
    "PX": "X-ray",
    "IO": "X-ray",
    "MG": "mammography",
    "PT": "PET",
    "NM": "nuclear medicine",
    "ES": "endoscopy",
    "OP": "fundus",
    "OPT": "OCT",
    "SM": "microscopy",
    "GM": "microscopy",
    "DMS": "dermoscopy",
    "XC": "photo",
}
"""DICOM's Modality (0008,0060) in the words of the training data's index."""

_NOT_IMAGES = {
    "SEG": "a segmentation",
    "RTDOSE": "a dose map",
    "RTSTRUCT": "a set of contours",
    "RTPLAN": "a treatment plan",
    "SR": "a report",
    "KO": "a list of key objects",
    "PR": "a presentation state",
    "ECG": "an ECG",
    "REG": "a registration",
}

_GROUPS = (
    "PixelMeasuresSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
)
_PALETTE = [
    f"{segmented}{colour}PaletteColorLookupTable{part}"
    for segmented in ("", "Segmented")
    for colour in ("Red", "Green", "Blue")
    for part in ("Descriptor", "Data")
    if not (segmented and part == "Descriptor")
]
_WHITELIST = [
    "BitsAllocated",
    "BitsStored",
    "Columns",
    "HighBit",
    "ImageOrientationPatient",
    "ImagerPixelSpacing",
    "Modality",
    "ModalityLUTSequence",
    "NumberOfFrames",
    "PatientOrientation",
    "PerFrameFunctionalGroupsSequence",
    "PhotometricInterpretation",
    "PixelPaddingValue",
    "PixelRepresentation",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "Rows",
    "SamplesPerPixel",
    "SharedFunctionalGroupsSequence",
    "VOILUTFunction",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    *_PALETTE,
]
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_INFLATED_BYTES = 1 << 30


def read_dicom(stream: BinaryIO, request: ReadRequest) -> MedicalImage:
    """Read one frame; of a file with several the middle one, unless `frame` names another."""
    request.allow_only({"frame", "window"}, "a DICOM image")
    header = _read_header(stream, request)
    frames = int(header.get("NumberOfFrames") or 1)
    frame = request.pick("frame", frames, default=(frames - 1) // 2)
    _flatten_groups(header, frame)
    stored = _decode(stream, frame, header, request)
    pixels, display, rendering = _render(stored, header, request)
    spacing, spacing_note = _spacing(header)
    notes = (
        f"frame {frame} of {frames}, counted from 0" if frames > 1 else "",
        rendering,
        spacing_note,
    )
    return MedicalImage(
        pixels=pixels,
        display=display,
        modality=MODALITIES.get(str(header.get("Modality", ""))),
        spacing=spacing,
        orientation=_orientation(header),
        source=request.name,
        notes=tuple(note for note in notes if note),
    )


def _read_header(stream: BinaryIO, request: ReadRequest) -> Any:
    import pydicom

    _refuse_deflated_bomb(stream, request)
    header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_WHITELIST))
    stream.seek(0)
    modality = str(header.get("Modality", ""))
    if modality in _NOT_IMAGES:
        raise InputError(
            f"{request.name}: this DICOM file is {_NOT_IMAGES[modality]}, not an image"
        )
    if not (header.get("Rows") and header.get("Columns")):
        raise InputError(f"{request.name}: this DICOM file has no pixels; name one with an image")
    request.check_size(int(header.Rows), int(header.Columns))
    return header


def _refuse_deflated_bomb(stream: BinaryIO, request: ReadRequest) -> None:
    """pydicom inflates the whole file, so a deflated bomb has to be found before."""
    head = stream.read(4096)
    # Part 10 files open with preamble, DICM and (0002,0000), the length of the meta group.
    if _DEFLATED in head and len(head) >= 144:
        stream.seek(144 + struct.unpack_from("<I", head, 140)[0])
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflater.decompress(stream.read(), _MAX_INFLATED_BYTES)
        if inflater.unconsumed_tail:
            raise InputError(f"{request.name}: unpacks to more than 1 GiB")
    stream.seek(0)


def _flatten_groups(header: Any, frame: int) -> None:
    """Put the frame's (and the shared) functional groups where single-frame files have them."""
    shared = header.get("SharedFunctionalGroupsSequence") or []
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*shared[:1], *per_frame[frame : frame + 1]]:
        for keyword in _GROUPS:
            for item in (group.get(keyword) or [])[:1]:
                header.update(item)


def _decode(stream: BinaryIO, frame: int, header: Any, request: ReadRequest) -> NDArray[Any]:
    """The stored values of one frame, (H, W) or (H, W, 3); YBR comes as RGB."""
    import pydicom

    syntax = header.file_meta.get("TransferSyntaxUID")
    try:
        # From a stream pydicom reads only the frame, but of a deflated one nothing at all.
        whole = syntax is not None and syntax.is_deflated
        tags = [*_WHITELIST, "PixelData"]
        source = pydicom.dcmread(stream, specific_tags=tags) if whole else stream
        stored = pydicom.pixels.pixel_array(source, index=frame)
    except AttributeError as error:
        raise InputError(
            f"{request.name}: this DICOM file has no pixels, or does not say how they are stored"
        ) from error
    except (NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"{request.name}: cannot decode {getattr(syntax, 'name', 'its compression')}; the "
            "file is damaged, or needs another decoder (pip install python-gdcm)"
        ) from error
    request.check_size(*stored.shape[:2])
    return stored.astype(stored.dtype.newbyteorder("="))


def _render(
    stored: NDArray[Any], header: Any, request: ReadRequest
) -> tuple[NDArray[Any], NDArray[np.uint8], str]:
    """Pixels as values with a meaning (HU, RGB), their display, and how it was made."""
    photometric = str(header.get("PhotometricInterpretation", ""))
    if photometric in ("MONOCHROME1", "MONOCHROME2") and stored.ndim == 2:
        values = _rescale(stored, header)
        grey, note = _grey(values, header, request)
        # MONOCHROME1 means that the lowest value is shown white.
        return values, grey_to_rgb(255 - grey if photometric.endswith("1") else grey), note
    request.allow_only({"frame"}, "a colour image")
    if photometric == "PALETTE COLOR" and stored.ndim == 2:
        from pydicom.pixels import apply_color_lut

        stored = apply_color_lut(stored, header)[..., :3]
    elif photometric != "RGB" and not photometric.startswith("YBR"):
        raise InputError(
            f"{request.name}: colours of the kind '{photometric[:16]}' cannot be shown"
        )
    if stored.ndim != 3 or stored.shape[2] != 3:
        raise InputError(f"{request.name}: a colour image needs three samples for each pixel")
    colour = colour_to_8_bits(stored, request.name)
    return colour, colour, ""


def _rescale(stored: NDArray[Any], header: Any) -> NDArray[Any]:
    from pydicom.pixels import apply_modality_lut

    plain = (header.get("RescaleSlope") or 1) == 1 and not header.get("RescaleIntercept")
    if plain and not header.get("ModalityLUTSequence"):
        return stored
    values = apply_modality_lut(stored, header)
    return values.astype(np.float32) if values.dtype.kind == "f" else values


def _grey(values: NDArray[Any], header: Any, request: ReadRequest) -> tuple[NDArray[np.uint8], str]:
    """The caller's window, else the file's, else soft tissue for CT, else what values span."""
    if request.window is None and (header.get("WindowWidth") or header.get("VOILUTSequence")):
        grey = _file_window(values, header)
        if grey is not None:
            return grey, "window of the file"
    is_ct = header.get("Modality") == "CT"
    if request.window is None and is_ct:
        return apply_window(values, SOFT_TISSUE), f"soft-tissue {window_text(SOFT_TISSUE)}"
    padding = header.get("PixelPaddingValue")
    return render_grey(values, request.window, hounsfield=False, padding=_padding(padding, header))


def _padding(stored: Any, header: Any) -> float | None:
    """The padding value in the units of the rescaled pixels."""
    if not isinstance(stored, (int, float)):
        return None
    return float(stored) * float(header.get("RescaleSlope") or 1) + float(
        header.get("RescaleIntercept") or 0
    )


def _file_window(values: NDArray[Any], header: Any) -> NDArray[np.uint8] | None:
    """The file's first VOI LUT or window in 8 bits; None when it shows nothing or is invalid.

    pydicom gives the windowed values in the stored range, whose ends are what values far below
    and far above become; those two travel along.
    """
    from pydicom.pixels import apply_voi_lut

    integer = header.get("VOILUTSequence") and values.dtype.kind == "f"
    typed = np.rint(values).astype(np.int32) if integer else values
    far = np.array([-(2**30), 2**30], dtype=np.result_type(typed.dtype, np.int32))
    try:
        with np.errstate(all="ignore"):
            shown = apply_voi_lut(np.concatenate([typed.ravel().astype(far.dtype), far]), header)
    except (ValueError, TypeError, NotImplementedError, IndexError):
        return None
    low, high = float(shown[-2]), float(shown[-1])
    if header.get("VOILUTSequence"):
        low, high = 0.0, float(2 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1)
    grey = apply_window(shown[:-2].reshape(values.shape), ((low + high) / 2, abs(high - low) or 1))
    flat = grey.min() == grey.max() and values.min() != values.max()
    return None if flat else grey


def _spacing(header: Any) -> tuple[tuple[float, float] | None, str]:
    """(row, column) in mm, and a note where it was measured at the detector."""
    for keyword, note in (
        ("PixelSpacing", ""),
        ("ImagerPixelSpacing", "spacing at the detector: the patient's is smaller"),
    ):
        value = header.get(keyword)
        if value is not None and len(value) == 2 and min(float(v) for v in value) > 0:
            return (float(value[0]), float(value[1])), note
    return None, ""


def _orientation(header: Any) -> Orientation | None:
    cosines = header.get("ImageOrientationPatient")
    if cosines is not None and len(cosines) == 6:
        return from_dicom_cosines([float(c) for c in cosines])
    return _from_letters(header.get("PatientOrientation"))


def _from_letters(letters: Any) -> Orientation | None:
    """PatientOrientation: where rows and columns point, main direction first, as in AF\\P."""
    words = [str(word)[:1] for word in letters or ()]
    opposite: dict[str, Any] = {"L": "R", "R": "L", "A": "P", "P": "A", "H": "F", "F": "H"}
    if len(words) != 2 or any(word not in opposite for word in words):
        return None
    try:
        return Orientation(left=opposite[words[0]], top=opposite[words[1]])
    except ValueError:
        return None
