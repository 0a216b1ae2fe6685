"""What an import did: counts in which everything that was found appears exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from medisee.data.importers.classes import load_classes
from medisee.data.licences import may_be_passed_on

__all__ = ["ImportReport"]


@dataclass
class ImportReport:
    """Counts of one source; images and masks are each written, left out by the rule, or flawed.

    left_out: reason -> count. flaws: (file, reason, "image" or "mask"). uncurated: labels that
    the class table lacks, kept under their own words. bound: images whose licence does not allow to
    pass them on.
    """

    source: str
    format: str
    images: int = 0
    masks: int = 0
    left_out_images: Counter[str] = field(default_factory=Counter)
    left_out_targets: Counter[str] = field(default_factory=Counter)
    flaws: list[tuple[str, str, str]] = field(default_factory=list)
    categories: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    bound: int = 0

    @property
    def images_found(self) -> int:
        """Images (and slices) that the source offered: written, left out and flawed."""
        flawed = sum(what == "image" for _, _, what in self.flaws)
        return self.images + sum(self.left_out_images.values()) + flawed

    @property
    def uncurated(self) -> list[str]:
        """Labels under which images were written and that the class table does not have."""
        table = load_classes()
        return sorted(label for label in self.categories if label not in table)

    def add(self, line: dict[str, Any]) -> None:
        """Count one unit's line of the journal."""
        for entry in line["images"]:
            self.images += 1
            self.masks += len(entry["masks"])
            self.categories.update({mask["label"] for mask in entry["masks"]})
            self.splits[entry["split"]] += 1
            self.licences[entry["licence"]] += 1
            self.bound += not may_be_passed_on(entry["licence"])
        self.left_out_images.update(line["left_out_images"])
        self.left_out_targets.update(line["left_out_targets"])
        self.flaws.extend((file, reason, what) for file, reason, what in line["flaws"])

    def add_all(self, lines: Iterable[dict[str, Any]]) -> ImportReport:
        """Count every line; gives itself."""
        for line in lines:
            self.add(line)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, counts sorted by name."""
        counters = {
            key: dict(sorted(getattr(self, key).items()))
            for key in ("left_out_images", "left_out_targets", "categories", "splits", "licences")
        }
        return {
            "source": self.source,
            "format": self.format,
            "images_found": self.images_found,
            "images": self.images,
            "masks": self.masks,
            **counters,
            "not_to_be_passed_on": self.bound,
            "uncurated": self.uncurated,
            "flaws": [list(flaw) for flaw in sorted(self.flaws)],
        }
