"""Builders of small files: DICOM and NIfTI as bytes, pictures in any format."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image


def picture_bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def nifti_bytes(
    array: np.ndarray, affine: np.ndarray | None = None, *, second: bool = False, **header: Any
) -> bytes:
    """Single-file NIfTI; without an affine the file states no orientation."""
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    image = kind(array, affine)
    if affine is None:
        image.header["sform_code"] = image.header["qform_code"] = 0
    for key, value in header.items():
        image.header[key] = value
    return image.to_bytes()


def dicom_bytes(pixels: np.ndarray | None, frames: int | None = None, **elements: Any) -> bytes:
    """Explicit little-endian DICOM of (H, W), (H, W, 3) or, with `frames`, a stack of those."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID
    data.PatientName = "Secret^Person"
    data.PatientID = "secret-id"
    if pixels is not None:
        shape = pixels.shape if frames is None else pixels.shape[1:]
        data.Rows, data.Columns = shape[:2]
        data.SamplesPerPixel = 3 if len(shape) == 3 else 1
        data.PhotometricInterpretation = "RGB" if len(shape) == 3 else "MONOCHROME2"
        if len(shape) == 3:
            data.PlanarConfiguration = 0
        bits = pixels.dtype.itemsize * 8
        data.BitsAllocated = data.BitsStored = bits
        data.HighBit = bits - 1
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        if frames is not None:
            data.NumberOfFrames = frames
        data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
        data["PixelData"].VR = "OW" if bits > 8 else "OB"
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, data, enforce_file_format=True)
    return stream.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    return picture_bytes


@pytest.fixture
def nifti() -> Callable[..., bytes]:
    return nifti_bytes


@pytest.fixture
def dicom() -> Callable[..., bytes]:
    return dicom_bytes
