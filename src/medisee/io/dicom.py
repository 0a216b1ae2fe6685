"""One frame of a DICOM image. Only elements of the whitelist below are ever read.

The whitelist holds what describes pixels and geometry; who the patient is, when and where the
image was taken stays in the file. (The instance's UID only tells, when a result is written, that
the file is still the one that was read.)
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medisee.errors import InputError
from medisee.io.dicom_geometry import affine_of, orientation_of, regions_of, spacing_of
from medisee.io.display import (
    CT_WINDOWS,
    WINDOWS,
    apply_window,
    grey_to_rgb,
    render_grey,
    window_text,
)
from medisee.io.hiding import hide_outside
from medisee.io.raster import colour_to_8_bits
from medisee.io.reference import SourceReference
from medisee.io.request import ReadRequest
from medisee.structures import MedicalImage

__all__ = ["flatten_groups", "not_an_image", "read_dicom", "read_header"]

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
    "PlanePositionSequence",
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
    "BodyPartExamined",
    "BurnedInAnnotation",
    "Columns",
    "HighBit",
    "ImageOrientationPatient",
    "ImagePositionPatient",
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
    "SequenceOfUltrasoundRegions",
    "SOPInstanceUID",
    "SharedFunctionalGroupsSequence",
    "SliceThickness",
    "SpacingBetweenSlices",
    "VOILUTFunction",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    *_PALETTE,
]
_BURNED_IN = "the file says that text is burned into the pixels; --hide covers it"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_INFLATED_BYTES = 1 << 30


def read_dicom(stream: BinaryIO, request: ReadRequest) -> MedicalImage:
    """Read one frame; of a file with several the middle one, unless `frame` names another."""
    request.allow_only({"frame", "window"}, "a DICOM image")
    header = read_header(stream, request)
    frames = int(header.get("NumberOfFrames") or 1)
    request.check_frames(frames)
    frame = request.pick("frame", frames, default=(frames - 1) // 2)
    flatten_groups(header, frame)
    stored = _decode(stream, frame, header, request)
    pixels, display, rendering = _render(stored, header, request)
    spacing, spacing_note = spacing_of(header)
    notes = (
        f"frame {frame} of {frames}, counted from 0" if frames > 1 else "",
        rendering,
        spacing_note,
        _BURNED_IN if header.get("BurnedInAnnotation") == "YES" else "",
    )
    image = MedicalImage(
        pixels=pixels,
        display=display,
        modality=MODALITIES.get(str(header.get("Modality", ""))),
        spacing=spacing,
        orientation=orientation_of(header),
        source=request.name,
        affine=affine_of(header) if frames == 1 else None,
        notes=tuple(note for note in notes if note),
        reference=_reference(header, frame, frames, request),
        places={"frame": (frame, frames)},
    )
    return _without_annotations(image, header) if request.hide_annotations else image


def _reference(header: Any, frame: int, frames: int, request: ReadRequest) -> SourceReference:
    return SourceReference(
        "dicom",
        () if request.file is None else (request.file,),
        (int(header.Rows), int(header.Columns), frames),
        axis=2,
        index=frame,
        frames=tuple(range(frames)),
        uids=(str(header.get("SOPInstanceUID", "")),),
    )


def _without_annotations(image: MedicalImage, header: Any) -> MedicalImage:
    """Keep only what the file calls an ultrasound region."""
    inside = regions_of(header)
    if not inside:
        raise InputError(
            f"{image.source}: the file does not say where it shows tissue; "
            "name the areas to hide as X1,Y1,X2,Y2"
        )
    return hide_outside(image, inside)


def not_an_image(header: Any) -> str | None:
    """What a DICOM object is that is no image; None for images."""
    return _NOT_IMAGES.get(str(header.get("Modality", "")))


def read_header(stream: BinaryIO, request: ReadRequest) -> Any:
    """The whitelisted elements without the pixels; refuses what is no image or too large."""
    import pydicom

    _refuse_deflated_bomb(stream, request)
    header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_WHITELIST))
    stream.seek(0)
    if other := not_an_image(header):
        raise InputError(f"{request.name}: this DICOM file is {other}, not an image")
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
        most = min(_MAX_INFLATED_BYTES, request.limits.unpacked_bytes)
        inflater.decompress(stream.read(), most)
        if inflater.unconsumed_tail:
            raise InputError(f"{request.name}: unpacks to more than {most >> 20} MiB")
    stream.seek(0)


def flatten_groups(header: Any, frame: int) -> None:
    """Put the frame's (and the shared) functional groups where single-frame files have them."""
    shared = header.get("SharedFunctionalGroupsSequence") or []
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*shared[:1], *per_frame[frame : frame + 1]]:
        for keyword in _GROUPS:
            for item in (group.get(keyword) or [])[:1]:
                header.update(item)


def _decode(stream: BinaryIO, frame: int, header: Any, request: ReadRequest) -> NDArray[Any]:
    """The stored values of one frame, (H, W) or (H, W, 3); YBR comes as RGB."""
    syntax = header.file_meta.get("TransferSyntaxUID")
    try:
        stored = _frame(stream, frame, whole=syntax is not None and syntax.is_deflated)
    except AttributeError as error:
        raise InputError(
            f"{request.name}: this DICOM file has no pixels, or does not say how they are stored"
        ) from error
    except (NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"{request.name}: cannot decode {_name_of(syntax)}; the "
            "file is damaged, or needs another decoder (pip install python-gdcm)"
        ) from error
    request.check_size(*stored.shape[:2])
    return stored.astype(stored.dtype.newbyteorder("="))


def _frame(stream: BinaryIO, frame: int, whole: bool) -> NDArray[Any]:
    """From a stream pydicom reads only the frame, but of a deflated one nothing at all."""
    import pydicom

    if not whole:
        try:
            return pydicom.pixels.pixel_array(stream, index=frame)
        except ValueError:  # the way of storing is not the one that the header states
            stream.seek(0)
    tags = [*_WHITELIST, "PlanarConfiguration", "PixelData"]
    data = pydicom.dcmread(stream, specific_tags=tags)
    return pydicom.pixels.pixel_array(data, index=frame)


def _name_of(syntax: Any) -> str:
    """The compression by its registered name; what else a file may state is not repeated."""
    known = syntax is not None and syntax.name != str(syntax)
    return str(syntax.name) if known else "its compression"


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
            f"{request.name}: colours of this kind cannot be shown (Photometric Interpretation)"
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
    if request.window is None and header.get("Modality") == "CT":
        return _ct_window(values, header)
    padding = header.get("PixelPaddingValue")
    return render_grey(values, request.window, hounsfield=False, padding=_padding(padding, header))


def _ct_window(values: NDArray[Any], header: Any) -> tuple[NDArray[np.uint8], str]:
    """The window for the body part that the file names, else soft tissue."""
    part = str(header.get("BodyPartExamined") or "").upper()
    name = CT_WINDOWS.get(part, "soft-tissue")
    window = WINDOWS[name]
    reason = ", for the body part that the file states" if part in CT_WINDOWS else ""
    return apply_window(values, window), f"{name} {window_text(window)}{reason}"


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
