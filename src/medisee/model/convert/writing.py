"""Writes a converted model: shards of safetensors, then a manifest, and only then the folder."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...errors import ModelError

SHARD = 6 * 10**8
"""Bytes of a shard of ours; twice so much, and a shard of theirs, are held at a time."""

INDEX = "model.safetensors.index.json"
MANIFEST = "conversion.json"

Progress = Callable[[str], None]


@contextmanager
def new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `target` that takes its name when all went well, and is removed otherwise.

    Raises:
        ModelError: `target` is there and may not be replaced.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())) and not overwrite:
        raise ModelError(f"{target} exists; choose another folder or add --overwrite")
    partial = target.with_name(f"{target.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.is_dir():
            shutil.rmtree(target)
        elif target.exists():
            target.unlink()
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_shards(
    sizes: Mapping[str, int],
    load: Callable[[str], Tensor],
    folder: Path,
    progress: Progress,
) -> None:
    """Writes tensors shard by shard; one shard alone is `model.safetensors`.

    Args:
        sizes: bytes of each tensor as it will be written, by name.
        load: gives the tensor of a name; called once each, in order.
    """
    shards = _shards(sizes)
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    )
    weight_map: dict[str, str] = {}
    for file, tensors in zip(names, shards, strict=True):
        progress(f"{file} ({names.index(file) + 1} of {len(names)})")
        state = {name: load(name).contiguous() for name in tensors}
        save_file(state, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    if len(names) > 1:
        total = {"total_size": sum(sizes.values())}
        write_json(folder / INDEX, {"metadata": total, "weight_map": weight_map})


def _shards(sizes: Mapping[str, int]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > SHARD:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """JSON, readable."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def checksums(paths: list[Path], progress: Progress) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of files, by name."""
    found = {}
    for path in paths:
        progress(f"checksum of {path.name}")
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        found[path.name] = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    return found


def bytes_of(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Size of a tensor."""
    return math.prod(shape) * dtype.itemsize
