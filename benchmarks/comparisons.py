"""Plain comparisons on the same questions as a model: what a figure is worth.

    python benchmarks/comparisons.py DATA [--questions FILE] --untrained FOLDER --out DIR

A true box given to the untouched LiteMedSAM (a ceiling), the mean mask of the category, and a
centred box (a floor). The untrained folder is what `python -m medisee.training.nano` writes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medisee.data.sa_med2d import Index
from medisee.evaluation import make_pairs, predict, read_predictions, score
from medisee.evaluation.plain import category_means, centred_boxes, true_boxes
from medisee.model.inference import TorchRuntime
from medisee.model.segmenter import Prompts
from medisee.processing import MediSeeProcessor, restore_mask
from medisee.structures import MedicalImage


class BoxSegmenter:
    """The untouched segmenter, given a box; the last image's embedding is kept."""

    def __init__(self, folder: Path) -> None:
        self.processor = MediSeeProcessor.from_pretrained(folder)
        self.segmenter = TorchRuntime.load(folder, self.processor, "cpu").model.segmenter
        self._image: MedicalImage | None = None

    @torch.inference_mode()
    def __call__(
        self, image: MedicalImage, box: tuple[float, float, float, float]
    ) -> NDArray[np.bool_]:
        """(H, W) bool mask of the box xyxy px."""
        if self._image is not image:
            self._image, self._input = image, self.processor.segmenter_input(image.display)
            self._embedding = self.segmenter.encode(torch.from_numpy(self._input.pixels)[None])
        scale = max(self._input.content) / max(image.height, image.width)
        prompts = Prompts(boxes=torch.tensor([box], dtype=torch.float32) * scale)
        logits = self.segmenter.decode(self._embedding, prompts)[0][0].numpy()
        side = self._input.pixels.shape[-1]
        return restore_mask(logits, side, self._input.content, self._input.original) > 0


def main() -> None:
    """Runs all three; each writes its report below the output folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--questions")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=4, help="images for each label or question")
    parser.add_argument("--untrained", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    index = Index.open(arguments.data)
    pairs = [
        pair
        for pair in make_pairs(index, arguments.split, arguments.questions, arguments.limit)
        if pair.labels
    ]
    systems = {
        "centred-box": centred_boxes(pairs),
        "category-means": category_means(index, pairs),
        "true-boxes": true_boxes(index, arguments.split, pairs, BoxSegmenter(arguments.untrained)),
    }
    for name, system in systems.items():
        folder = arguments.out / name
        predict(system, index, pairs, folder / "predictions.jsonl", explain=True)
        predictions = read_predictions(folder / "predictions.jsonl")
        report = score(system.name, arguments.split, index, pairs, predictions)
        report.save(folder)
        print(report.to_markdown().split("\n## ")[0])


if __name__ == "__main__":
    main()
