"""A small set of records with its images and masks, for tests of the screening page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

LABELS = ("liver", "spleen")


def write_set(folder: Path, count: int) -> None:
    """`count` records in train.jsonl, two for each image, and what an `Index` needs."""
    for name in ("images", "masks", "work"):
        (folder / name).mkdir()
    entries, records = [], []
    for number in range(0, count, 2):
        image, masks = f"images/{number}.png", []
        ramp = np.tile(np.arange(24, dtype=np.uint8) * 10, (16, 1))
        Image.fromarray(ramp).save(folder / image)
        for place, label in enumerate(LABELS):
            file, box = f"masks/{number}--{place}_000.png", [4 + 10 * place, 4, 10 + 10 * place, 12]
            mask = np.zeros((16, 24), np.uint8)
            mask[box[1] : box[3], box[0] : box[2]] = 255
            Image.fromarray(mask).save(folder / file)
            masks.append({"file": file, "label": label, "box": box})
            records.append(_record(number + place, image, label, file, box))
        entries.append({"image": image, "masks": masks, "modality": "CT", "split": "train"})
    _write(folder / "index.jsonl", entries)
    _write(folder / "train.jsonl", records)


def _record(number: int, image: str, label: str, file: str, box: list[int]) -> dict[str, object]:
    return {
        "id": f"r{number:03d}",
        "image": image,
        "kind": "implicit",
        "targets": [{"label": label, "masks": [file], "box": box}],
        "modality": "CT",
        "perspective": "attribute",
        "length": "short",
        "question": f"Which organ is meant by question {number}?",
        "answer": f"The {label} is meant.",
        "writer": "offline",
        "split": "train",
    }


def _write(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
