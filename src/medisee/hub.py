"""Which models there are and where they lie: by name, folder or hub id. Reads no weights.

A model is a folder: `config.json` (architecture), the weights, the tokenizer, `README.md` (the
model card, whose front matter states `license` and `datasets`) and `targets.json`:

    {"liver": {"n_train": 143, "n_test": 21, "dice": 0.81}, ...}

one entry for each entity that the model was trained to find; `dice` (mean over the test images,
0..1) is null where the test set has none.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medisee.errors import ModelError
from medisee.extras import needs_extra

__all__ = [
    "ModelEntry",
    "TargetRecord",
    "cache_folder",
    "clear_cache",
    "compiled",
    "find_model",
    "folder_size",
    "known_models",
    "model_info",
    "weights_checksum",
]

SHIPPED = {"nano": Path(__file__).parent / "nano"}
"""Models inside the package, by name."""

_WEIGHTS = ("*.safetensors",)
GRAPHS = ("encoder", "language", "locate")
"""Graphs of a compiled model, `<name>.onnx`; they read the weights beside them."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class TargetRecord:
    """How well one entity is known: images trained on, images tested on, mean test Dice 0..1."""

    name: str
    n_train: int
    n_test: int = 0
    dice: float | None = None


@dataclass(frozen=True)
class ModelEntry:
    """A model on this machine: size in bytes; `ready` is False where the weights are missing."""

    name: str
    folder: Path
    licence: str
    size: int
    ready: bool


def compiled(folder: Path) -> bool:
    """Whether a model folder holds the graphs that run without torch."""
    return all((folder / f"{name}.onnx").is_file() for name in GRAPHS)


def cache_folder() -> Path:
    """The platform's cache folder for downloaded weights and kept features; may not exist yet."""
    from platformdirs import user_cache_path

    return user_cache_path("medisee", appauthor=False)


def clear_cache() -> int:
    """Delete the cache folder; returns the bytes that became free."""
    folder = cache_folder()
    size = folder_size(folder)
    if folder.is_dir():
        shutil.rmtree(folder)
    return size


def folder_size(folder: Path) -> int:
    """Bytes of all files below `folder`, links not followed; 0 where there is none."""
    files = folder.rglob("*") if folder.is_dir() else []
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


def find_model(name: str) -> Path:
    """The folder of the model called `name`: a shipped name, a folder, or a hub id `owner/name`.

    A hub id is downloaded to the cache folder on first use.

    Raises:
        ModelError: no such model, a folder that is no model, or weights that are missing.
        MissingExtraError: a hub id, and the packages that download it are not installed.
    """
    if name in SHIPPED:
        return _with_weights(SHIPPED[name], f"the weights of {name} are not in this installation")
    folder = Path(name)
    if name and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name} is no model folder: it has no config.json")
        return _with_weights(folder, f"{name} has no weights (*.safetensors or *.onnx)")
    if name and folder.exists():
        raise ModelError(f"{name} is a file; a model is a folder with config.json and weights")
    if _HUB_ID.fullmatch(name):
        return _download(name)
    raise ModelError(_unknown(name))


def _with_weights(folder: Path, complaint: str) -> Path:
    if not _has_weights(folder):
        raise ModelError(f"{complaint}; give the folder of a model that has them with --model")
    return folder


def _has_weights(folder: Path) -> bool:
    return any(True for pattern in _WEIGHTS for _ in folder.glob(pattern))


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, SHIPPED, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(SHIPPED)};"
    return f"no model or folder is called {name!r}; {hint} a folder or a hub id works too"


def _download(hub_id: str) -> Path:
    with needs_extra("downloading a model", "torch"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    try:
        folder = Path(snapshot_download(hub_id, cache_dir=cache_folder() / "hub"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{hub_id} is no folder here, and no model of this name could be downloaded; "
            "check the name and the network"
        ) from error
    if not (folder / "config.json").is_file():
        raise ModelError(f"{hub_id} holds no model: it has no config.json")
    return _with_weights(folder, f"{hub_id} has no weights")


def known_models() -> list[ModelEntry]:
    """The shipped models and those in the cache folder."""
    cached = (cache_folder() / "hub").glob("models--*/snapshots/*/config.json")
    names = {"/".join(path.parts[-4].split("--")[1:]): path.parent for path in sorted(cached)}
    return [_entry(name, folder) for name, folder in {**SHIPPED, **names}.items()]


def _entry(name: str, folder: Path) -> ModelEntry:
    licence = str(model_info(folder)["licence"])
    return ModelEntry(name, folder, licence, folder_size(folder), _has_weights(folder))


def weights_checksum(folder: Path) -> str:
    """SHA-256 over a folder's weight files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def model_info(folder: Path) -> dict[str, Any]:
    """What a model says of itself: `name`, `licence`, `sources` (training data), `targets`.

    `targets` is a list of `TargetRecord`, empty where the folder has no targets.json.
    """
    metadata = _card_metadata(folder / "README.md")
    return {
        "name": folder.name,
        "licence": str(metadata["license"]).upper() if "license" in metadata else "not stated",
        "sources": [str(source) for source in metadata.get("datasets") or []],
        "targets": _targets(folder / "targets.json"),
    }


def _card_metadata(card: Path) -> dict[str, Any]:
    import yaml

    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if not text.startswith("---\n"):
        return {}
    try:
        metadata = yaml.safe_load(text.split("---\n", 2)[1])
    except yaml.YAMLError as error:
        raise ModelError(f"{card}: the front matter of the model card is no YAML") from error
    return metadata if isinstance(metadata, dict) else {}


def _targets(file: Path) -> list[TargetRecord]:
    if not file.is_file():
        return []
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        return [TargetRecord(name, **fields) for name, fields in sorted(entries.items())]
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: not a list of targets that this version can read") from error
