"""Croissant metadata (mlcommons.org/croissant/1.0) of a set: its files and their columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import medisee
from medisee.engine.stats import Stats

__all__ = ["croissant"]

_COLUMNS = {
    "id": "unique in the set",
    "image": "image file",
    "kind": "implicit, referring, absent, several or round",
    "label": "the target's category, where there is one target",
    "modality": "kind of image",
    "perspective": "attribute or location, of implicit questions",
    "length": "short or long, of implicit questions",
    "question": "what a person asks",
    "answer": "the explaining answer",
}
_FORMATS = {
    ".jsonl": "application/jsonlines",
    ".json": "application/json",
    ".parquet": "application/x-parquet",
}


def croissant(
    folder: Path,
    stats: Stats,
    questions: Mapping[str, list[Path]],
    others: Iterable[Path] = (),
) -> str:
    """The metadata as JSON-LD; questions: split -> files, of one form, in `folder`."""
    files = [*(path for paths in questions.values() for path in paths), *others]
    document = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "mlmr-sd",
        "description": "Questions about medical images that describe what they mean, with masks, "
        "boxes and explaining answers.",
        "license": sorted(stats.licences),
        "citeAs": "Tong et al., MediSee: Reasoning-based Pixel-level Perception in Medical Images, "
        "arXiv:2504.11008; this set is a rebuild by other means.",
        "version": medisee.__version__,
        "distribution": [_file(folder, path) for path in files],
        "recordSet": [
            _records(folder, split, path, number)
            for split, paths in questions.items()
            for number, path in enumerate(paths)
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _file(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "encodingFormat": _FORMATS[path.suffix],
        "contentSize": f"{path.stat().st_size} B",
        "sha256": _digest(path),
    }


def _records(folder: Path, split: str, path: Path, number: int) -> dict[str, Any]:
    """One file as a table: its columns that are plain text."""
    table = split if not number else f"{split}-{number}"
    source = {"@id": path.relative_to(folder).as_posix()}
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"{table}/{name}",
            "name": name,
            "description": meaning,
            "dataType": "sc:Text",
            "source": {"fileObject": source, "extract": {"column": name}},
        }
        for name, meaning in _COLUMNS.items()
    ]
    return {"@type": "cr:RecordSet", "@id": table, "name": table, "field": fields}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: Any) -> Iterator[bytes]:
    while block := file.read(1 << 20):
        yield block


_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "containedIn": "cr:containedIn",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataBiases": "cr:dataBiases",
    "dataCollection": "cr:dataCollection",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "personalSensitiveInformation": "cr:personalSensitiveInformation",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
