"""Findings as DICOM-SEG and as a structured report (SR, TID 1500) that refer to their source.

Patient and study are copied from the source's files, opened again for that; nothing else of
MediSee ever reads them.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

import medisee
from medisee.boxes import mask_diameters
from medisee.errors import InputError
from medisee.io.coding import Coding, code_finding
from medisee.io.reference import SourceReference
from medisee.io.volume import VolumeAnswer, VolumeFinding, findings_of
from medisee.structures import Answer

__all__ = ["encode_seg", "encode_seg_and_sr"]

_MANUFACTURER = "MediSee developers"
_SERIES_NUMBERS = {"seg": 9001, "sr": 9002}
_UTF8 = "ISO_IR 192"
# Type 2 in the standard: they must be there and may be empty.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName"),
)
_MUST_BE_THERE = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


def encode_seg(answer: Answer | VolumeAnswer) -> bytes:
    """A DICOM-SEG with one binary segment for each finding.

    Raises InputError when the source has changed since it was read, or lacks what a SEG must
    repeat. `medisee.io.writing.check_formats` has seen to the rest.
    """
    return _encode(_segmentation(answer)[0])


def encode_seg_and_sr(answer: Answer | VolumeAnswer) -> tuple[bytes, bytes]:
    """A DICOM-SEG, and an SR that measures its segments and holds the explanation."""
    segmentation, sources = _segmentation(answer)
    return _encode(segmentation), _encode(_report(answer, segmentation, sources))


def _encode(dataset: Any) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _segmentation(answer: Answer | VolumeAnswer) -> tuple[Any, list[Any]]:
    """The SEG dataset and the headers of the images that it refers to."""
    import highdicom

    place = answer.image.reference
    if place is None:
        raise AssertionError("check_formats refuses this")
    findings = findings_of(answer)
    slices = sorted({index for finding in findings for index in finding.masks})
    sources = _sources(place, slices)
    pixels = np.stack([_frames(finding, place, slices, sources) for finding in findings], axis=-1)
    cine_frame = _as_single_frame(sources, place, slices, answer.image.spacing)
    with _quietly():
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=pixels if cine_frame is None else pixels[cine_frame : cine_frame + 1],
            segmentation_type="BINARY",
            segment_descriptions=[_describe(n, f) for n, f in enumerate(findings, start=1)],
            series_number=_SERIES_NUMBERS["seg"],
            content_label="MEDISEE",
            content_description="Targets of a question, outlined by a model",
            series_description="MediSee segmentation",
            manufacturer_model_name="MediSee",
            software_versions=medisee.__version__,
            device_serial_number=answer.model[:64],
            specific_character_set=_UTF8,
            **_identity(),
        )
    if cine_frame is not None:
        _name_frame(segmentation, cine_frame)
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    if "PixelMeasuresSequence" in shared and not shared.PixelMeasuresSequence[0].PixelSpacing:
        del shared.PixelMeasuresSequence
    if "ImagePositionPatient" not in sources[0] and "PatientOrientation" not in segmentation:
        segmentation.PatientOrientation = sources[0].get("PatientOrientation") or ""
    return segmentation, sources


@contextmanager
def _quietly() -> Iterator[None]:
    """What highdicom says of a source that breaks the standard quotes it; this does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            "the DICOM source states no Frame of Reference, or breaks the standard in what a "
            "DICOM result must repeat; leave seg and sr out"
        ) from error


def _identity() -> dict[str, Any]:
    import highdicom

    return {
        "series_instance_uid": highdicom.UID(),
        "sop_instance_uid": highdicom.UID(),
        "instance_number": 1,
        "manufacturer": _MANUFACTURER,
    }


def _sources(place: SourceReference, slices: Sequence[int]) -> list[Any]:
    """Headers of the files that hold the slices, in their order."""
    import pydicom

    files = place.files if len(place.files) == 1 else [place.files[index] for index in slices]
    headers = []
    for file in files:
        with file.open() as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(stream, stop_before_pixels=True)
        _check(header, place)
        headers.append(header)
    return headers


def _check(header: Any, place: SourceReference) -> None:
    missing = [name for name in _MUST_BE_THERE if not header.get(name)]
    if missing:
        raise InputError(
            f"the DICOM source lacks {', '.join(missing)}, which a DICOM result must repeat; "
            "leave seg and sr out"
        )
    if str(header.SOPInstanceUID) not in place.uids:
        raise InputError("the DICOM source has changed since it was read; ask again")
    for name in _MAY_BE_EMPTY:
        value = header[name] if name in header else None  # noqa: SIM401 - the element
        setattr(header, name, "" if value is None else _conformant(value))


def _conformant(element: Any) -> Any:
    """A value as the standard writes it; a date or time that is none is left empty."""
    from pydicom.valuerep import DA, TM

    kind = {"DA": DA, "TM": TM}.get(element.VR)
    if kind is None or not element.value:
        return element.value
    try:
        parsed = kind(element.value)
    except ValueError:
        return ""
    return f"{parsed:%Y%m%d}" if kind is DA else element.value


def _frames(
    finding: VolumeFinding, place: SourceReference, slices: Sequence[int], sources: Sequence[Any]
) -> NDArray[np.uint8]:
    """(frames, H, W), one for each source image or, of a multi-frame source, each of its frames."""
    multi = len(place.files) == 1
    count = int(sources[0].get("NumberOfFrames") or 1) if multi else len(slices)
    frames = np.zeros((count, *place.shape[:2]), np.uint8)
    for index, mask in finding.masks.items():
        frames[place.frames[index] if multi else slices.index(index)] = mask
    return frames


def _as_single_frame(
    sources: Sequence[Any],
    place: SourceReference,
    slices: Sequence[int],
    spacing: tuple[float, float] | None,
) -> int | None:
    """The only frame that is marked, of a film without places; its header then states one frame.

    highdicom writes segments of a single frame only where there are no coordinates, and asks
    multi-frame images for functional groups, which ultrasound and X-ray films do not have.
    """
    from highdicom.spatial import get_image_coordinate_system
    from pydicom import Dataset
    from pydicom.valuerep import DSfloat

    [first, *_] = sources
    if get_image_coordinate_system(first) is not None or len(slices) != 1:
        return None
    if "SharedFunctionalGroupsSequence" not in first:
        shared, measures = Dataset(), Dataset()
        measures.PixelSpacing = spacing and [DSfloat(mm, auto_format=True) for mm in spacing]
        shared.PixelMeasuresSequence = [measures]
        first.SharedFunctionalGroupsSequence = [shared]
    if int(first.get("NumberOfFrames") or 1) == 1:
        return None
    first.NumberOfFrames = 1
    return place.frames[slices[0]]


def _name_frame(segmentation: Any, frame: int) -> None:
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        for derived in group.get("DerivationImageSequence") or ():
            for source in derived.SourceImageSequence:
                source.ReferencedFrameNumber = frame + 1


def _describe(number: int, finding: VolumeFinding) -> Any:
    import highdicom

    coding = code_finding(finding.label)
    description = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=_label(number, finding),
        segmented_property_category=coding.category,
        segmented_property_type=coding.type,
        algorithm_type="AUTOMATIC",
        algorithm_identification=_algorithm(),
        tracking_uid=highdicom.UID(),
        tracking_id=_label(number, finding),
    )
    if coding.side is not None:
        modifier = highdicom.sr.CodedConcept.from_code(coding.side)
        item = description.SegmentedPropertyTypeCodeSequence[0]
        item.SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return description


def _label(number: int, finding: VolumeFinding) -> str:
    return (finding.label or f"finding {number}")[:64]


def _algorithm() -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.AlgorithmIdentificationSequence(
        name="MediSee",
        family=codes.DCM.ArtificialIntelligence,
        version=medisee.__version__,
        source=_MANUFACTURER,
    )


def _report(answer: Answer | VolumeAnswer, segmentation: Any, sources: list[Any]) -> Any:
    """Measurements of each segment, and the explanation as their comment."""
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    device = highdicom.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=highdicom.sr.DeviceObserverIdentifyingAttributes(
            uid=highdicom.UID(), name="MediSee", manufacturer_name=_MANUFACTURER
        ),
    )
    groups = [
        _measured(number, finding, answer, segmentation, sources)
        for number, finding in enumerate(findings_of(answer), start=1)
    ]
    content = highdicom.sr.MeasurementReport(
        observation_context=highdicom.sr.ObservationContext(observer_device_context=device),
        procedure_reported=Code("363679005", "SCT", "Imaging procedure"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    with _quietly():
        return highdicom.sr.Comprehensive3DSR(
            evidence=[*sources, segmentation],
            content=content,
            series_number=_SERIES_NUMBERS["sr"],
            is_complete=True,
            series_description="MediSee measurements",
            specific_character_set=_UTF8,
            **_identity(),
        )


def _measured(
    number: int,
    finding: VolumeFinding,
    answer: Answer | VolumeAnswer,
    segmentation: Any,
    sources: list[Any],
) -> Any:
    import highdicom

    coding = code_finding(finding.label)
    described = segmentation.SegmentSequence[number - 1]
    common = {
        "tracking_identifier": highdicom.sr.TrackingIdentifier(
            uid=described.TrackingUID, identifier=described.TrackingID
        ),
        "finding_category": coding.category,
        "finding_type": coding.type,
        "finding_sites": _sites(coding),
        "measurements": _measurements(finding, answer),
    }
    kind, segment = _roi(number, segmentation, sources, planar=isinstance(answer, Answer))
    group = kind(referenced_segment=segment, **common)
    group[0].ContentSequence.append(_comment(finding, answer))
    return group


def _roi(number: int, segmentation: Any, sources: list[Any], planar: bool) -> tuple[Any, Any]:
    """The template for a plane or a volume, and its reference to the segment and its images."""
    from highdicom import sr

    shared = segmentation.SharedFunctionalGroupsSequence[0]
    frames = [
        frame
        for frame, group in enumerate(segmentation.PerFrameFunctionalGroupsSequence, start=1)
        if _segment_of(group, shared) == number
    ]
    images = [
        sr.SourceImageForSegmentation(source.SOPClassUID, source.SOPInstanceUID)
        for source in sources
    ]
    place = (segmentation.SOPClassUID, segmentation.SOPInstanceUID)
    if planar:
        one = sr.ReferencedSegmentationFrame(*place, frames, number, images[0])
        # Frames of a binary SEG belong to one segment, so the standard wants no number beside.
        del one[0].ReferencedSOPSequence[0].ReferencedSegmentNumber
        return sr.PlanarROIMeasurementsAndQualitativeEvaluations, one
    several = sr.ReferencedSegment(*place, number, source_images=images)
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations, several


def _segment_of(group: Any, shared: Any) -> int:
    """A frame's segment; highdicom states that of all frames once where there is only one."""
    own = group if "SegmentIdentificationSequence" in group else shared
    return int(own.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def _sites(coding: Coding) -> list[Any] | None:
    """Anatomy is its own site; of a lesion the place is not coded."""
    import highdicom

    if coding.side is None or coding.category.value != "91723000":
        return None
    return [highdicom.sr.FindingSite(anatomic_location=coding.type, laterality=coding.side)]


def _measurements(finding: VolumeFinding, answer: Answer | VolumeAnswer) -> list[Any]:
    """Area and diameters on the slice where it is largest, and its volume, where mm are known."""
    import highdicom
    from pydicom.sr.codedict import codes

    values = []
    if (spacing := answer.image.spacing) is not None:
        mask = finding.masks[finding.largest]
        long, short = mask_diameters(mask, spacing)
        area = float(mask.sum()) * spacing[0] * spacing[1]
        values += [
            (codes.SCT.Area, area, codes.UCUM.SquareMillimeter),
            (codes.SCT.LongAxis, long, codes.UCUM.Millimeter),
            (codes.SCT.ShortAxis, short, codes.UCUM.Millimeter),
        ]
    if isinstance(answer, VolumeAnswer) and (voxel := answer.volume.voxel_mm3) is not None:
        values.append((codes.SCT.Volume, finding.voxels * voxel, codes.UCUM.CubicMillimeter))
    return [
        highdicom.sr.Measurement(name=name, value=round(value, 2), unit=unit)
        for name, value, unit in values
    ]


def _comment(finding: VolumeFinding, answer: Answer | VolumeAnswer) -> Any:
    """Question, explanation, and how sure the model is."""
    import highdicom
    from pydicom.sr.codedict import codes

    words = (
        f"Question: {answer.question}",
        answer.text,
        f"Score {finding.score:.2f}: calibrated probability that the outline overlaps the target "
        "with an IoU above 0.5.",
        *answer.warnings,
        "Made by a research tool; not for diagnosis.",
    )
    return highdicom.sr.TextContentItem(
        name=codes.DCM.Comment,
        value=" ".join(word for word in words if word),
        relationship_type="CONTAINS",
    )
