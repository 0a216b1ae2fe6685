"""What the user chooses about an import, and the rule that selects images and targets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medisee.errors import DataError

__all__ = ["ImportOptions", "Selection", "read_classes", "read_json"]


@dataclass(frozen=True)
class Selection:
    """The rule by which images and targets are chosen; a target is a category's union.

    min_area, max_area: share of the image that a target covers. 100 of 256 x 256 pixels, the
        default, is SA-Med2D-20M's own limit; above the upper one nothing is left to find.
    min_contrast: between the 1st and the 99th percentile of the displayed grey values (0..255).
    min_completeness: share of a target's outline that does not lie on the edge of the image.
    per_category: an image is left out once each of its categories has that many images; 0: all.
    slices: most slices of one volume.
    """

    min_area: float = 100 / 256**2
    max_area: float = 0.95
    min_contrast: float = 16.0
    min_completeness: float = 0.75
    per_category: int = 0
    slices: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.min_area <= self.max_area <= 1:
            raise DataError("the area limits are shares of the image: 0 <= least <= most <= 1")
        if not (0 <= self.min_completeness <= 1 and 0 <= self.min_contrast <= 255):
            raise DataError("completeness is a share from 0 to 1, contrast lies in 0 to 255")
        if self.per_category < 0 or self.slices < 1:
            raise DataError("the limit for each category is 0 or more, that of slices 1 or more")


@dataclass(frozen=True)
class ImportOptions:
    """What the source does not say, and choices; "" or None means: as the source says.

    format: pairs, coco, label-studio, decathlon, totalsegmentator, dicom or sa-med2d.
    name: the data set's name in file names and index; default: the folder's.
    label: the one class that masks show (pairs).
    classes: value, id or name in the source -> class name; None there leaves the class out.
    images: folder of the images where the annotation file does not lie beside them.
    patient: regular expression whose first group, in an image's name, is the patient.
    plane, window: of volumes; default: as acquired, and by modality and body part.
    """

    format: str = ""
    name: str = ""
    label: str = ""
    classes: Mapping[str, str | None] = field(default_factory=dict)
    images: Path | None = None
    modality: str = ""
    body_part: str = ""
    plane: str = ""
    window: tuple[float, float] | None = None
    licence: str = ""
    labelled_by: str = ""
    patient: str = ""
    selection: Selection = Selection()

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.patient).groups
        except re.error as error:
            raise DataError(f"the patient's expression is not a valid one: {error}") from error
        if self.patient and not groups:
            raise DataError("the patient's expression needs a group, as in '^(case[0-9]+)_'")

    def patient_of(self, name: str) -> str:
        """The patient that an image's name tells, "" where it tells none."""
        match = re.search(self.patient, name) if self.patient else None
        return (match[1] or "") if match else ""

    def settings(self) -> dict[str, Any]:
        """All that decides what an import gives, as JSON types; paths do not."""
        plain = {key: value for key, value in asdict(self).items() if key != "images"}
        plain["classes"] = dict(sorted(self.classes.items()))
        return json.loads(json.dumps(plain))


def read_classes(path: Path) -> dict[str, str | None]:
    """A JSON object of value, id or name in the source -> class name, or null to leave it out."""
    mapping = read_json(path)
    if not isinstance(mapping, dict) or not all(
        value is None or (isinstance(value, str) and value.strip()) for value in mapping.values()
    ):
        raise DataError(f'{path.name}: must map values or names to classes, as in {{"1": "liver"}}')
    return mapping


def read_json(path: Path) -> Any:
    """The content of a JSON file; DataError when it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name}: is not valid JSON") from error
