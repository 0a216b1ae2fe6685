"""Small labelled data sets with known geometry, for the engine's tests."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image

# Label -> box; the patient's right is on the image's left.
ABDOMEN = {
    "liver": (4, 4, 40, 50),
    "right kidney": (14, 60, 30, 80),
    "left kidney": (72, 60, 86, 80),
}
CT = {"modality": "CT", "body_part": "abdomen", "plane": "axial"}
EYE = {"modality": "fundus", "body_part": "retina", "plane": "full fundus"}


def add_image(root: Path, name: str, boxes, **fields):
    """Draws an image with a mask for each label and gives its line for index.jsonl."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(crc32(name.encode())).integers(0, 255, (100, 100))
    Image.fromarray(noise.astype(np.uint8)).save(root / f"images/{name}.png")
    masks = []
    for number, (label, (x1, y1, x2, y2)) in enumerate(boxes.items()):
        mask = np.zeros((100, 100), np.uint8)
        mask[y1:y2, x1:x2] = 255
        file = f"masks/{name}--{number:04}_000.png"
        Image.fromarray(mask).save(root / file)
        masks.append({"file": file, "label": label, "box": [x1, y1, x2, y2]})
    return {"image": f"images/{name}.png", "patient": name, "masks": masks, **fields}


def write_index(root: Path, entries) -> Path:
    """Writes index.jsonl; an entry that is a text is written as it is."""
    lines = (entry if isinstance(entry, str) else json.dumps(entry) for entry in entries)
    (root / "index.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return root
