"""Question-answer records (MLMR-SD and our own), JSON lines or Parquet: read, write, check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medisee.data.parquet import read_rows
from medisee.data.sa_med2d import ImageRecord
from medisee.errors import DataError
from medisee.structures import QARecord

__all__ = ["check_records", "read_records", "write_records"]


def read_records(path: str | Path) -> Iterator[QARecord]:
    """Streams the records of a JSONL or Parquet file; DataError names the place of a bad one."""
    path = Path(path)
    if path.suffix == ".parquet":
        for number, row in enumerate(read_rows(path), 1):
            yield _checked(row, f"{path.name}, row {number}")
        return
    try:
        lines = path.open(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read: {error.strerror}") from error
    with lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _checked(line, f"{path.name}, line {number}")


def write_records(path: str | Path, records: Iterable[QARecord]) -> int:
    """Writes the records as JSONL and gives their number; the file appears only when complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    count = 0
    try:
        with partial.open("w", encoding="utf-8") as out:
            for record in records:
                out.write(record.to_json() + "\n")
                count += 1
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def check_records(records: Iterable[QARecord], images: Iterable[ImageRecord]) -> int:
    """Checks records against the images they were made from and gives their number.

    Ids are unique; image, labels and mask files exist there; each record's split is its image's;
    no patient is in two splits. DataError tells the first record that breaks a rule.
    """
    known = {image.image: image for image in images}
    ids: set[str] = set()
    split_of_patient: dict[str, str | None] = {}
    for record in records:
        if record.id in ids:
            raise DataError(f"record {record.id}: the id occurs twice")
        ids.add(record.id)
        image = known.get(record.image)
        if image is None:
            raise DataError(f"record {record.id}: the data set has no image {record.image}")
        _check_targets(record, image)
        _check_split(record, image, split_of_patient)
    return len(ids)


def _check_targets(record: QARecord, image: ImageRecord) -> None:
    for target in record.targets:
        if set(target.masks) - set(image.files(target.label)):
            raise DataError(f"record {record.id}: the image has no such mask of '{target.label}'")


def _check_split(record: QARecord, image: ImageRecord, seen: dict[str, str | None]) -> None:
    if image.split and record.split != image.split:
        raise DataError(f"record {record.id}: is in '{record.split}', its image is not")
    patient = image.patient or image.image
    if seen.setdefault(patient, record.split) != record.split:
        raise DataError(f"record {record.id}: its patient is in two splits")


def _checked(value: str | dict[str, Any], where: str) -> QARecord:
    try:
        if isinstance(value, str):
            return QARecord.model_validate_json(value)
        return QARecord.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "record"
        raise DataError(f"{where}: {place}: {first['msg']}") from error
