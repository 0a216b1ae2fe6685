"""Fixtures: a tiny data set (two abdominal CTs, one fundus photograph a split) and questions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

BOXES = {
    "a": {"liver": (5, 5, 25, 35), "spleen": (40, 10, 50, 20)},
    "b": {"liver": (5, 10, 25, 40)},
    "c": {"optic disc": (20, 20, 40, 30)},
}


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    lines = []
    for split in ("train", "test"):
        for name, boxes in BOXES.items():
            stem, masks = f"{split}-{name}", []
            Image.fromarray(np.full((50, 60), 80, np.uint8)).save(root / f"images/{stem}.png")
            for number, (label, (x1, y1, x2, y2)) in enumerate(boxes.items()):
                mask = np.zeros((50, 60), np.uint8)
                mask[y1:y2, x1:x2] = 255
                file = f"masks/{stem}--{number:04}_000.png"
                Image.fromarray(mask).save(root / file)
                masks.append({"file": file, "label": label, "box": [x1, y1, x2, y2]})
            ct = name != "c"
            lines.append(
                {
                    "image": f"images/{stem}.png",
                    "modality": "CT" if ct else "fundus",
                    "body_part": "abdomen" if ct else "retina",
                    "split": split,
                    "patient": stem,
                    "masks": masks,
                }
            )
    (root / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture
def questions(tmp_path):
    lines = [
        {"id": "i1", "kind": "implicit", "label": "liver", "style": "short", "question": "Bile?"},
        {"id": "i2", "kind": "implicit", "label": "pancreas", "style": "odd", "question": "Where?"},
        {
            "id": "s1",
            "kind": "several",
            "labels": ["liver", "spleen"],
            "question": "The bile maker and the blood filter?",
        },
        {
            "id": "n1",
            "kind": "absent",
            "reason": "not_in_view",
            "applies_to": {"modality": ["fundus"], "body_part": ["retina"]},
            "question": "Show the absent knee.",
        },
        {
            "id": "n2",
            "kind": "absent",
            "reason": "not_medical",
            "applies_to": {"modality": [], "body_part": []},
            "question": "How is the weather?",
        },
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
