"""Parquet in shards: written batch by batch, so any number of rows needs constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from medisee.errors import DataError
from medisee.extras import needs_extra

__all__ = ["read_rows", "record_schema", "write_shards"]

_BATCH = 4096
_FEATURE = "Parquet"


def record_schema() -> Any:
    """The columns of a QA record, named as in its JSON (a pyarrow schema)."""
    with needs_extra(_FEATURE, "data"):
        import pyarrow as pa

    text, box = pa.string(), pa.list_(pa.float64())
    target = pa.struct([("label", text), ("masks", pa.list_(text)), ("box", box)])
    turn = pa.struct([("question", text), ("answer", text)])
    kinds = {"targets": pa.list_(target), "box": box, "pass": pa.int8(), "history": pa.list_(turn)}
    names = (
        "id", "image", "kind", "targets", "label", "box", "modality", "perspective", "length",
        "pass", "question", "answer", "history", "refusal", "writer", "prompt_version", "verdict",
        "licence", "split",
    )  # fmt: skip
    return pa.schema([(name, kinds.get(name, text)) for name in names])


def write_shards(
    stem: Path,
    rows: Iterable[Mapping[str, Any]],
    count: int,
    schema: Any,
    shard: int = 100_000,
    batch: int = _BATCH,
) -> list[Path]:
    """Writes `count` rows to STEM-00000-of-00003.parquet and so on; gives the files.

    shard: most rows of a file; batch: rows that are held in memory at once.
    """
    with needs_extra(_FEATURE, "data"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    rows, shards, paths = iter(rows), max(1, -(-count // shard)), []
    for number in range(shards):
        paths.append(stem.with_name(f"{stem.name}-{number:05d}-of-{shards:05d}.parquet"))
        left = shard
        with pq.ParquetWriter(paths[-1], schema, compression="zstd") as out:
            while held := list(islice(rows, min(batch, left))):
                out.write_table(pa.Table.from_pylist(held, schema))
                left -= len(held)
    return paths


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Streams the rows of one file as plain Python values."""
    with needs_extra(_FEATURE, "data"):
        import pyarrow as pa
        import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for part in file.iter_batches(_BATCH):
                yield from part.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path.name}: cannot be read as Parquet") from error
