"""Weight files of other people: which belong together, what they hold, one tensor at a time.

Pickles are read here and nowhere else, and only as weights; files are mapped into memory, not
read into it.
"""

from __future__ import annotations

import json
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...errors import ModelError

PICKLES = (".bin", ".pth", ".pt")
_TRAINING = re.compile(r"(optimizer|scheduler|rng_state|training_args|trainer_state|scaler)")
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")


def find_files(source: Path) -> list[Path]:
    """The weight files of a file or folder: what its index names, else safetensors, else pickles.

    Raises:
        ModelError: there is none, or one that an index or a number promises is missing.
    """
    if source.is_file():
        if source.suffix not in (".safetensors", *PICKLES):
            raise ModelError(f"{source} is no weight file; expected .safetensors, .bin, .pth, .pt")
        return [source]
    if not source.is_dir():
        raise ModelError(f"there is no file or folder {source}")
    for suffixes in ((".safetensors",), PICKLES):
        files = sorted(path for path in source.iterdir() if _is_weights(path, suffixes))
        promised = _promised(source, suffixes, files)
        if missing := [name for name in promised if not (source / name).is_file()]:
            raise ModelError(
                f"{source} lacks {missing[0]}, one of {len(promised)} weight files that belong "
                f"together ({len(missing)} missing); copy or download it again"
            )
        if promised or files:
            return [source / name for name in promised] or files
    raise ModelError(f"{source} holds no weight files (*.safetensors, *.bin, *.pth, *.pt)")


def _is_weights(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.is_file() and path.suffix in suffixes and not _TRAINING.match(path.name)


def _promised(folder: Path, suffixes: tuple[str, ...], files: list[Path]) -> list[str]:
    """Names that an index states, or that follow from numbers such as 00001-of-00003."""
    names: set[str] = set()
    for index in folder.glob("*.index.json"):
        names |= set(_index_of(index).values())
    for path in files:
        if numbered := _NUMBERED.fullmatch(path.name):
            start, _, count, suffix = numbered.groups()
            names |= {f"{start}-{n:05d}-of-{count}{suffix}" for n in range(1, int(count) + 1)}
    return sorted(name for name in names if name.endswith(suffixes))


def _index_of(path: Path) -> dict[str, str]:
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in mapping.items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} is no index of weight files") from error


class WeightFile(ABC):
    """One file: what it holds is known, its numbers are mapped into memory while they are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tensors: dict[str, Tensor] | None = None
        state = self._mapped()
        self.shapes = {name: tuple(value.shape) for name, value in state.items()}
        self.dtypes = {name: value.dtype for name, value in state.items()}
        self.close()

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`, on the CPU."""
        return self._mapped()[name]

    def close(self) -> None:
        """Lets go of the memory; `tensor` maps the file again."""
        self._tensors = None

    def _mapped(self) -> dict[str, Tensor]:
        if self._tensors is None:
            self._tensors = self._read()
        return self._tensors

    @abstractmethod
    def _read(self) -> dict[str, Tensor]:
        """All tensors of the file, mapped where that can be."""


class SafeFile(WeightFile):
    """A safetensors file."""

    def _read(self) -> dict[str, Tensor]:
        return load_file(self._path)


class PickleFile(WeightFile):
    """A torch file; weights only. Zip files (torch 1.6 on) are mapped, older ones are read."""

    def _read(self) -> dict[str, Tensor]:
        mapped = zipfile.is_zipfile(self._path)
        loaded = torch.load(self._path, map_location="cpu", weights_only=True, mmap=mapped)
        return dict(_state_dict(loaded))


def open_file(path: Path) -> WeightFile:
    """Opens a weight file.

    Raises:
        ModelError: damaged, truncated, or a pickle that holds more than weights.
    """
    try:
        return SafeFile(path) if path.suffix == ".safetensors" else PickleFile(path)
    except UnpicklingError as error:
        raise ModelError(
            f"{path} is refused: it is damaged, or a pickle that holds more than weights"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        size = path.stat().st_size
        raise ModelError(
            f"{path} is truncated or damaged ({size} bytes); copy or download it again"
        ) from error


def _state_dict(loaded: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state dict, which may lie under a key of its own."""
    values: Any = loaded
    for key in ("state_dict", "model", "module"):
        if isinstance(values, Mapping) and isinstance(values.get(key), Mapping):
            values = values[key]
    if not isinstance(values, Mapping):
        raise ValueError("no state dict")
    yield from ((str(n), v) for n, v in values.items() if isinstance(v, Tensor))


def all_files(sources: Iterable[Path]) -> list[Path]:
    """The weight files of all sources, each once."""
    return list(dict.fromkeys(path for source in sources for path in find_files(source)))
