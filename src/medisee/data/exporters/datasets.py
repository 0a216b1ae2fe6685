"""A folder that `datasets.load_dataset(FOLDER)` opens, with all that it needs inside.

OUT/questions/train-00000-of-00001.parquet    the records (the default configuration)
OUT/images/train-00000-of-00001.parquet       each image once, with a mask for each category

`load_dataset(FOLDER, "images")` gives the pictures; `image` is in both and joins them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import yaml
from PIL import Image

from medisee.data.exporters.export import Export, Written
from medisee.data.exporters.parquet import write_questions
from medisee.data.parquet import write_shards
from medisee.extras import needs_extra

__all__ = ["write"]

_TABLES = ("questions", "images")


def write(export: Export) -> Written:
    """Both tables of each split, and the head of the card, which names them."""
    for name in _TABLES:
        (export.to / name).mkdir()
    questions, pictures = {}, []
    schema = _schema()
    for split in export.splits:
        questions[split] = write_questions(export, export.to / "questions", split)
        stem, count = export.to / "images" / split, export.stats.images[split]
        pictures += write_shards(stem, _rows(export, split), count, schema, shard=2048, batch=32)
    return Written(questions, pictures, _head(export.splits))


def _rows(export: Export, split: str) -> Iterator[dict[str, Any]]:
    for image in export.images(split):
        first = image.records[0]
        yield {
            "image": image.file,
            "picture": _picture((export.index.root / image.file).read_bytes(), image.file),
            "modality": first.modality,
            "licence": first.licence,
            "masks": [
                {
                    "label": target.label,
                    "box": target.box,
                    "mask": _picture(_png(Image.fromarray(export.mask(target))), None),
                }
                for target in image.targets
            ],
        }


def _picture(data: bytes, path: str | None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def _png(image: Image.Image) -> bytes:
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def _schema() -> Any:
    """Columns of the images, with what tells `datasets` which of them are pictures."""
    with needs_extra("Parquet", "data"):
        import pyarrow as pa

    text, picture = pa.string(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    mask = pa.struct([("label", text), ("box", pa.list_(pa.float64())), ("mask", picture)])
    columns = [("image", text), ("picture", picture), ("modality", text), ("licence", text)]
    schema = pa.schema([*columns, ("masks", pa.list_(mask))])
    words, number = {"dtype": "string", "_type": "Value"}, {"dtype": "float64", "_type": "Value"}
    features = {
        "image": words,
        "picture": {"_type": "Image"},
        "modality": words,
        "licence": words,
        "masks": [{"label": words, "box": [number], "mask": {"_type": "Image"}}],
    }
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _head(splits: list[str]) -> str:
    """The YAML in front of a data card, from which `datasets` learns where its files are."""
    configs = [
        {
            "config_name": name,
            **({"default": True} if name == _TABLES[0] else {}),
            "data_files": [
                {"split": split, "path": f"{name}/{split}-*.parquet"} for split in splits
            ],
        }
        for name in _TABLES
    ]
    head = {"license": "other", "language": ["en"], "configs": configs}
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
