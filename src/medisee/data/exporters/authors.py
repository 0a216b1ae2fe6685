"""One line for each implicit question, with one image and one mask file, as the paper trains.

OUT/train.jsonl, val.jsonl, test.jsonl    image, mask, label, box, question, answer ...
OUT/images/, OUT/masks/                   one mask for each category of an image
OUT/SAMed2D_v1.json, SAMed2D_v1_class_mapping_id.json     the same masks, for template queries

The box is x1, y1, x2, y2 as shares of the image's width and height; the answer is the explanation
that follows "It is [SEG] and [BBOX].".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from PIL import Image

from medisee.data.exporters.export import Export, Labelled, Written

__all__ = ["write"]


def write(export: Export) -> Written:
    """Lines, images, masks, and SA-Med2D's own index of them."""
    ids = {label: number for number, label in enumerate(sorted(export.stats.categories), 1)}
    (export.to / "masks").mkdir()
    questions: dict[str, list[Path]] = {}
    pairs_file = export.to / "SAMed2D_v1.json"
    with pairs_file.open("w", encoding="utf-8", newline="\n") as pairs:
        before = "{\n"
        for split in export.splits:
            questions[split] = [export.to / f"{split}.jsonl"]
            with questions[split][0].open("w", encoding="utf-8", newline="\n") as out:
                for image in export.images(split):
                    masks = _write_image(export, image, ids, out)
                    pairs.write(f"{before}{json.dumps(image.file)}: {json.dumps(masks)}")
                    before = ",\n"
        pairs.write("\n}\n")
    mapping = export.to / "SAMed2D_v1_class_mapping_id.json"
    mapping.write_text(json.dumps(ids, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Written(questions, [pairs_file, mapping])


def _write_image(export: Export, image: Labelled, ids: dict[str, int], out: IO[str]) -> list[str]:
    """The files of an image and the lines about it; gives its mask files."""
    export.copy_image(image.file)
    masks: dict[str, str] = {}
    size = (1, 1)
    for target in image.targets:
        mask = export.mask(target)
        size = (mask.shape[1], mask.shape[0])
        masks[target.label] = f"masks/{image.stem}--{ids[target.label]:04d}_000.png"
        Image.fromarray(mask).save(export.to / masks[target.label])
    for line in _lines(image, masks, size):
        out.write(json.dumps(line, ensure_ascii=False) + "\n")
    return list(masks.values())


def _lines(image: Labelled, masks: dict[str, str], size: tuple[int, int]) -> Iterator[Any]:
    for record in image.records:
        if record.kind != "implicit" or record.label is None or record.box is None:
            continue
        shares = [edge / size[number % 2] for number, edge in enumerate(record.box)]
        yield {
            "id": record.id,
            "kind": record.kind,
            "image": image.file,
            "mask": masks[record.label],
            "label": record.label,
            "box": [round(share, 6) for share in shares],
            "question": record.question,
            "answer": record.answer,
            "modality": record.modality,
            "perspective": record.perspective,
            "length": record.length,
        }
