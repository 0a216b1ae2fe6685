"""Whether a build's splits are apart: no patient and no near-identical image in two of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

__all__ = ["LeakCheck", "near_identical"]

_BITS = 3  # of 64 in which the hashes of near-identical images may differ
_BANDS = 4  # one more than _BITS: images that near agree in at least one band of 16 bits
_MOST = 20_000  # pairs that are looked at
_GREY = 3.0  # mean difference of 32 x 32 grey values below which images are near-identical


@dataclass
class LeakCheck:
    """Collects 17 bytes an image, then compares across splits."""

    splits: tuple[str, ...]
    _patients: array[int] = field(default_factory=lambda: array("Q"))
    _patient_splits: array[int] = field(default_factory=lambda: array("B"))
    _hashes: array[int] = field(default_factory=lambda: array("Q"))
    _hash_splits: array[int] = field(default_factory=lambda: array("B"))

    def add(self, split: str, patient: str | None, likeness: int) -> None:
        """An image: its split, the hash of its patient (None: unknown), and its likeness."""
        code = self.splits.index(split)
        if patient is not None:
            self._patients.append(int(patient, 16))
            self._patient_splits.append(code)
        self._hashes.append(likeness)
        self._hash_splits.append(code)

    def patients(self) -> int:
        """How many patients are in more than one split."""
        if not self._patients:
            return 0
        pairs = np.stack([_array(self._patients), _array(self._patient_splits)])
        seen = np.unique(pairs, axis=1)[0]
        return int((np.unique(seen, return_counts=True)[1] > 1).sum())

    def candidates(self) -> list[tuple[int, int]]:
        """Pairs of images (numbers in the order of `add`) in two splits with like hashes."""
        hashes, splits = _array(self._hashes), _array(self._hash_splits)
        found: set[tuple[int, int]] = set()
        for band in range(_BANDS):
            keys = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
            for group in _groups(keys):
                found.update(islice(_near(group, hashes, splits), _MOST))
                if len(found) >= _MOST:
                    return sorted(found)[:_MOST]
        return sorted(found)


def near_identical(first: NDArray[np.float32], second: NDArray[np.float32]) -> bool:
    """Whether two thumbnails, 32 x 32 grey values, show the same image."""
    return bool(np.abs(first - second).mean() < _GREY)


def _array(values: array[int]) -> NDArray[np.uint64]:
    return np.asarray(values, np.uint64)


def _groups(keys: NDArray[np.uint64]) -> Iterator[NDArray[np.intp]]:
    """The positions of each key that occurs more than once."""
    order = np.argsort(keys, kind="stable")
    borders = np.flatnonzero(np.diff(keys[order])) + 1
    return (group for group in np.split(order, borders) if len(group) > 1)


def _near(
    group: NDArray[np.intp], hashes: NDArray[np.uint64], splits: NDArray[np.uint64]
) -> Iterator[tuple[int, int]]:
    for place, first in enumerate(group[:-1]):
        rest = group[place + 1 :]
        rest = rest[splits[rest] != splits[first]]
        for second in rest[_bits(hashes[rest] ^ hashes[first]) <= _BITS]:
            yield int(min(first, second)), int(max(first, second))


def _bits(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many bits of each value are set."""
    octets = values[:, None].view(np.uint8)
    return np.unpackbits(octets, axis=1).sum(axis=1, dtype=np.int64)
