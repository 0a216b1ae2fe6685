"""The records in Parquet: OUT/train-00000-of-00002.parquet and so on, columns as in the JSON."""

from __future__ import annotations

from pathlib import Path

from medisee.data.exporters.export import Export, Written
from medisee.data.parquet import record_schema, write_shards

__all__ = ["write", "write_questions"]


def write(export: Export) -> Written:
    """The records of each split."""
    return Written({split: write_questions(export, export.to, split) for split in export.splits})


def write_questions(export: Export, folder: Path, split: str) -> list[Path]:
    """The shards of one split in `folder`."""
    rows = (record.model_dump(mode="json", by_alias=True) for record in export.records(split))
    return write_shards(folder / split, rows, export.stats.records[split], record_schema())
