"""Arguments that several commands share: one place for their names and help texts."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AsOption",
    "DeviceOption",
    "FrameOption",
    "HideOption",
    "ImageArgument",
    "JsonOption",
    "ModelOption",
    "OutOption",
    "Plane",
    "PlaneOption",
    "PrecisionOption",
    "RuntimeOption",
    "SeriesOption",
    "SliceOption",
    "StoreOption",
    "WindowOption",
]

_CHOICES = "Which image of the file"


class Plane(str, Enum):
    """Standard planes that a volume can be cut in."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"


ImageArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI file, a folder or ZIP archive with a "
        "DICOM series, a DICOMweb address, or example:NAME (see medisee examples).",
    ),
]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Name, folder or hub id of the model.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps. Default: the best.")
]
RuntimeOption = Annotated[
    str | None,
    typer.Option(help="onnx, openvino or torch. Default: onnx for a compiled model on the CPU."),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="Of a large language model: fp32, bf16, int8 or int4. Default: by size and memory."
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON for machines, and nothing else, to stdout.")
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder for the results; made where it is missing."),
]
SliceOption = Annotated[
    int | None,
    typer.Option(
        "--slice",
        help="One slice of a volume, from 0. Default: the whole volume.",
        rich_help_panel=_CHOICES,
    ),
]
PlaneOption = Annotated[
    Plane | None,
    typer.Option(help="Plane of a volume. Default: as acquired.", rich_help_panel=_CHOICES),
]
FrameOption = Annotated[
    int | None, typer.Option(help="Frame of a series, from 0.", rich_help_panel=_CHOICES)
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        metavar="CENTRE,WIDTH",
        help="Grey values to show, such as 40,400, or a name: soft-tissue, lung, bone, brain ...",
        rich_help_panel=_CHOICES,
    ),
]
AsOption = Annotated[
    str,
    typer.Option(
        "--as",
        metavar="FORMATS",
        help="Write masks as nifti, seg (DICOM-SEG), sr (DICOM report) too, such as seg,sr.",
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="DICOMweb archive to send the results to, as DICOM-SEG, with --as sr a report too.",
    ),
]
SeriesOption = Annotated[
    int | None,
    typer.Option(
        "--series",
        help="Series Number, where a folder or study holds several. Default: a folder's largest.",
        rich_help_panel=_CHOICES,
    ),
]
HideOption = Annotated[
    list[str] | None,
    typer.Option(
        "--hide",
        metavar="X1,Y1,X2,Y2",
        help="Black out an area before asking, such as burned-in text; or annotations: all that "
        "a DICOM ultrasound shows outside its regions. May be repeated.",
        rich_help_panel=_CHOICES,
    ),
]
