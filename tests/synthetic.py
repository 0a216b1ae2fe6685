"""A data set of a few drawn images in SA-Med2D-20M's layout, with index.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
ORGANS = {"liver": (190, 10), "spleen": (120, 40)}
"""Grey value and leftmost column of each organ."""


def write_data(
    root: Path, counts: dict[str, int] | None = None, extra: dict[str, str] | None = None
) -> Path:
    """Abdominal CTs with a liver and, in all but each third, a spleen.

    Args:
        counts: images of each split; three to train with and two to validate by default.
        extra: the label of one further image, for each split named.
    """
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    lines, random = [], np.random.default_rng(0)
    counts = {"train": 3, "val": 2} if counts is None else counts
    for split, count in counts.items():
        for number in range(count):
            present = ["liver"] if number % 3 == 2 else list(ORGANS)
            lines.append(_write_image(root, f"{split}{number}", split, present, random))
    for split, label in (extra or {}).items():
        lines.append(_write_image(root, f"{split}-{label}", split, [label], random))
    (root / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def _write_image(root, name, split, labels, random):  # type: ignore[no-untyped-def]
    stem = f"ct_00--drawn--{name}"
    pixels = random.integers(0, 60, (HEIGHT, WIDTH)).astype(np.uint8)
    masks = []
    for place, label in enumerate(labels):
        grey, left = ORGANS.get(label, (230, 28))
        mask = np.zeros((HEIGHT, WIDTH), bool)
        top, width = int(random.integers(6, 14)), int(random.integers(10, 16))
        mask[top : top + 20, left : left + width] = True
        pixels[mask] = grey
        file = f"masks/{stem}--{place:04d}_000.png"
        Image.fromarray(mask).save(root / file)
        box = [left, top, left + width, top + 20]
        masks.append({"file": file, "label": label, "box": box})
    Image.fromarray(pixels).save(root / f"images/{stem}.png")
    return {
        "image": f"images/{stem}.png",
        "modality": "CT",
        "body_part": "abdomen",
        "plane": "axial",
        "split": split,
        "patient": name,
        "masks": masks,
    }
