"""A small CT series on disk, as a scanner would write it, in any orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

HEIGHT, WIDTH, DEPTH = 24, 32, 5
SECRETS = ("Secret^Person", "secret-id", "19500101", "Dr^Hidden", "ACC-77")


def write_series(
    root: Path,
    cosines: np.ndarray | None = None,
    spacing: tuple[float, float] = (1.5, 0.5),
    step: float = 3.0,
    depth: int = DEPTH,
    **elements: object,
) -> Path:
    """Slices in files whose names tell nothing of their order; values grow with the position.

    cosines: (2, 3) LPS+ directions of the rows and of the columns; axial by default.
    """
    root.mkdir(parents=True, exist_ok=True)
    along = np.eye(3)[:2] if cosines is None else np.asarray(cosines, float)
    normal = np.cross(along[0], along[1])
    study, series, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    for number in range(depth):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        data.StudyInstanceUID, data.SeriesInstanceUID = study, series
        data.FrameOfReferenceUID, data.PositionReferenceIndicator = frame_of_reference, ""
        data.PatientName, data.PatientID, data.PatientBirthDate = SECRETS[:3]
        data.ReferringPhysicianName, data.AccessionNumber = SECRETS[3:]
        data.PatientSex, data.StudyDate, data.StudyTime, data.StudyID = "F", "20200102", "1011", "1"
        data.Modality, data.SeriesNumber, data.InstanceNumber = "CT", 3, depth - number
        data.ImageOrientationPatient = [round(float(c), 10) for c in along.ravel()]
        place = np.array([-20.0, 15.0, 100.0]) + number * step * normal
        data.ImagePositionPatient = [round(float(c), 6) for c in place]
        data.PixelSpacing, data.SliceThickness = list(spacing), step
        data.Rows, data.Columns, data.SamplesPerPixel = HEIGHT, WIDTH, 1
        data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 1
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.RescaleIntercept, data.RescaleSlope = 0, 1
        data.PixelData = np.full((HEIGHT, WIDTH), 10 * number, np.int16).tobytes()
        for keyword, value in elements.items():
            setattr(data, keyword, value)
        name = f"{(number * 7 + 3) % 11:02d}.dcm"
        pydicom.dcmwrite(root / name, data, enforce_file_format=True)
    return root
