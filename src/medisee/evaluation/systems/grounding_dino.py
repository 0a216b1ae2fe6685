"""Grounding DINO before a box-prompted segmenter (Liu et al. 2023; transformers' own model).

Text: lower case, ending in a full stop. The box with the highest score, where that is at least
0.35; none is a refusal, scored as an empty mask. Licence: Apache-2.0, code and weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, GroundingDinoForObjectDetection
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)

from medisee.boxes import cxcywh_to_xyxy
from medisee.errors import ModelError
from medisee.evaluation.systems import Setup
from medisee.evaluation.systems.boxed import load_box_segmenter
from medisee.evaluation.systems.common import Box, BoxSegmenter, Found, OneByOne
from medisee.structures import MedicalImage

__all__ = ["Detector", "build"]

THRESHOLD = 0.35
_NAMES = {"medsam": "MedSAM", "sam-med2d": "SAM-Med2D"}


def build(
    setup: Setup, kind: str, dino: str, segmenter: str, threshold: str = str(THRESHOLD)
) -> OneByOne:
    """The question finds a box, the box finds a mask."""
    detect = Detector.load(dino, setup.device, float(threshold))
    decode = load_box_segmenter(kind, Path(segmenter), setup.device)
    return compose(detect, decode, f"Grounding DINO + {_NAMES[kind]}")


def compose(detect: Detector, decode: BoxSegmenter, name: str) -> OneByOne:
    """Any detector before any box-prompted segmenter."""

    def answer(image: MedicalImage, question: str) -> Found:
        found = detect(image, question)
        if found is None:
            return Found()
        box, score = found
        return Found(mask=decode(image, box), score=score)

    return OneByOne(name, answer)


@dataclass
class Detector:
    """Grounding DINO; the best box for a text."""

    model: Any
    images: Any
    tokenizer: Any
    threshold: float = THRESHOLD

    @classmethod
    def load(cls, folder: str, device: str | None, threshold: float = THRESHOLD) -> Detector:
        """From a folder or hub id; ModelError when it holds no Grounding DINO."""
        try:
            model = GroundingDinoForObjectDetection.from_pretrained(folder)
            images = GroundingDinoImageProcessorPil.from_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ModelError(f"{folder} holds no Grounding DINO: {reason}") from error
        return cls(model.to(device or "cpu").eval(), images, tokenizer, threshold)

    @torch.inference_mode()
    def __call__(self, image: MedicalImage, text: str) -> tuple[Box, float] | None:
        """The best box, xyxy px within the image, and its score; None below the threshold."""
        words = self.tokenizer(
            text.lower().strip(" .?!") + ".",
            return_tensors="pt",
            truncation=True,
            max_length=self.model.config.max_text_len,
        )
        picture = self.images(images=Image.fromarray(image.display), return_tensors="pt")
        found = self.model(**words.to(self.model.device), **picture.to(self.model.device))
        scores = found.logits[0].sigmoid().amax(dim=-1)
        best = int(scores.argmax())
        if float(scores[best]) < self.threshold:
            return None
        edges = cxcywh_to_xyxy(found.pred_boxes[0, best].cpu().numpy(), image.height, image.width)
        x1, y1, x2, y2 = edges.clip(0, [image.width, image.height] * 2).tolist()
        return (x1, y1, x2, y2), float(scores[best])
