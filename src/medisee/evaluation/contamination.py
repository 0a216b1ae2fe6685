"""Has a system seen the test? Its training images against the test's: same, alike, same patient."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medisee.data.sa_med2d import ImageRecord, Index
from medisee.errors import DataError

__all__ = ["Contamination", "check_contamination"]

_SIDE = 16
ALIKE = 12
"""Two images whose 256 gradient signs differ in at most so many places are near-duplicates."""


@dataclass(frozen=True)
class Contamination:
    """Test images that a training list gives away, as (test image, training image or patient).

    same: pixel for pixel; alike: near-duplicates (differences of neighbours on a 16 x 16 grid have
    the same sign almost everywhere; neighbouring slices of a volume can be, too); patients: the
    patient is in the training list, under the same id.
    """

    tested: int
    trained: int
    same: Sequence[tuple[str, str]]
    alike: Sequence[tuple[str, str]]
    patients: Sequence[tuple[str, str]]

    def to_markdown(self) -> str:
        """What was found, each case named."""
        lines = [f"{self.tested} test images against {self.trained} training images.", ""]
        parts = {"same image": self.same, "near-duplicate": self.alike, "patient": self.patients}
        for name, found in parts.items():
            lines.append(f"- {name}: {len(found)}")
            lines += [f"  - {test} in {train}" for test, train in found]
        return "\n".join([*lines, ""])


def check_contamination(
    train: Index, test: Index, train_split: str = "train", test_split: str = "test"
) -> Contamination:
    """Compares two splits, of one data set or of two; DataError when one is empty."""
    sides = [(train, list(train.records(train_split))), (test, list(test.records(test_split)))]
    for (_, records), split in zip(sides, (train_split, test_split), strict=True):
        if not records:
            raise DataError(f"there is no image in the split '{split}'")
    (seen, seen_signs), (asked, asked_signs) = (_fingerprints(*side) for side in sides)
    names = [record.image for record in sides[0][1]]
    by_hash = dict(zip(seen, names, strict=True))
    same = {
        record.image: by_hash[key]
        for key, record in zip(asked, sides[1][1], strict=True)
        if key in by_hash
    }
    return Contamination(
        tested=len(sides[1][1]),
        trained=len(names),
        same=sorted(same.items()),
        alike=[pair for pair in _alike(sides[1][1], asked_signs, names, seen_signs)
               if pair[0] not in same],
        patients=_patients(sides[1][1], sides[0][1]),
    )  # fmt: skip


def _fingerprints(
    index: Index, records: Sequence[ImageRecord]
) -> tuple[list[str], NDArray[np.uint8]]:
    """Hashes of the pixels (N), and (N, 32) packed signs of horizontal differences."""
    hashes, signs = [], []
    for record in records:
        pixels = index.load_image(record)
        content = str(pixels.shape).encode() + pixels.tobytes()
        hashes.append(hashlib.sha256(content).hexdigest())
        small = (
            Image.fromarray(pixels).convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
        )
        grey = np.asarray(small, dtype=np.int16)
        signs.append(np.packbits((grey[:, 1:] > grey[:, :-1]).ravel()))
    return hashes, np.stack(signs)


def _alike(
    asked: Sequence[ImageRecord],
    asked_signs: NDArray[np.uint8],
    names: Sequence[str],
    seen_signs: NDArray[np.uint8],
) -> list[tuple[str, str]]:
    """The nearest training image of each test image that has one near enough."""
    bits = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint16)
    found = []
    for record, signs in zip(asked, asked_signs, strict=True):
        distances = bits[seen_signs ^ signs].sum(axis=1)
        nearest = int(np.argmin(distances))
        # A picture that is almost flat has almost no signs, and would be like any other one.
        if distances[nearest] <= ALIKE and bits[signs].sum() > 2 * ALIKE:
            found.append((record.image, names[nearest]))
    return found


def _patients(asked: Sequence[ImageRecord], seen: Sequence[ImageRecord]) -> list[tuple[str, str]]:
    images: dict[str, str] = defaultdict(str)
    images.update({record.patient: record.image for record in seen if record.patient})
    return [(r.image, images[r.patient]) for r in asked if r.patient and r.patient in images]
