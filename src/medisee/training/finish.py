"""What a trained model needs beside its weights: calibration, refusal threshold, familiarity.

All are fitted on the validation split, with reserved wordings that no training record used.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from ..calibration import Calibration, fit_logistic, refusal_threshold
from ..data.sa_med2d import Index
from ..entities import load_entities
from ..familiarity import Familiarity, fit_familiarity, summary
from ..model import MediSeeModel
from ..model.inference import TorchRuntime
from ..model.mllm import SharedEncoderMLLM
from ..model.placement import load_placed
from ..phrases import Phrasebook
from ..processing import MediSeeProcessor, raw_scores
from ..structures import QARecord
from .context import Context
from .features import FeatureCache


def finish(context: Context, folder: Path) -> None:
    """Writes a folder that `medisee.load` opens: weights, processor, what was fitted.

    A model that emits categories' states keeps them, packed weights and checked sentences; others
    (the paper's form) are written as they are, and speak for themselves.
    """
    model, processor, categories = context.model, context.processor, None
    index, cache = context.val.index, context.val.cache
    folder.mkdir(parents=True, exist_ok=True)
    if context.emits_states:
        processor, categories = _speaking(processor), context.categories
        categories.save(folder)
    processor.save_pretrained(folder)
    _save(model, folder)
    model.cpu()
    placed = load_placed(folder, str(context.device))  # what is measured is what will be used
    runtime = TorchRuntime(placed, processor, categories)
    calibrate(runtime, index, context.val_records, cache).save(folder / "calibration.json")
    familiar(index, cache).save(folder)
    text = json.dumps(trained_targets(index), indent=1) + "\n"
    (folder / "targets.json").write_text(text, encoding="utf-8")


def _speaking(processor: MediSeeProcessor) -> MediSeeProcessor:
    return MediSeeProcessor(processor.config, processor.tokenizer, phrasebook())


def _save(model: MediSeeModel, folder: Path) -> None:
    """Small weights for nano's form; safetensors in the precision of the run for others."""
    if isinstance(model.mllm, SharedEncoderMLLM):
        model.save_packed(folder)
        return
    model.config.dtype = torch.float32  # of the mask path; read otherwise, it would be rounded
    model.save_pretrained(folder)


def phrasebook() -> Phrasebook:
    """Every explanation of the entities, and one sentence for each reason to refuse."""
    entities = load_entities().values()
    return Phrasebook({entity.name: entity.explanation for entity in entities}, REFUSALS)


REFUSALS = (
    "Nothing here matches: what you ask for is not in view in this image.",
    "This kind of image cannot show that: it takes another kind of examination.",
    "That is not a question about a medical image: nothing can be marked for it.",
    "Please say what to look for: the question does not tell.",
)


def calibrate(
    runtime: TorchRuntime, index: Index, records: list[QARecord], cache: FeatureCache
) -> Calibration:
    """Fits P(IoU > 0.5) on the first targets and the refusal threshold on the decisions."""
    processor = runtime.processor
    grouped: dict[str, list[QARecord]] = defaultdict(list)
    for record in records:
        if not record.history:
            grouped[record.image].append(record)
    scores: list[float] = []
    correct: list[bool] = []
    present: list[float] = []
    for image, asked in track(grouped.items(), "calibrating", console=Console(stderr=True)):
        display = index.load_image(image)
        given, own = processor.segmenter_input(display), processor.mllm_pixels(display)
        cached = cache.load(index.root / image, 0).astype(np.float32)
        embedding = torch.from_numpy(cached)[None].to(runtime.model.device)
        encoded = runtime.encode(given, own, embedding)
        ids = [processor.question_ids(record.question) for record in asked]
        for record, raw in zip(asked, runtime.perceive(encoded, ids, accept=0.0), strict=True):
            if record.kind != "absent":
                present.append(1 - float(raw.decision[0]))
            if record.kind in ("implicit", "referring"):
                mask, score = raw_scores(raw, given)[0]
                scores.append(score)
                correct.append(_iou(mask, index.load_union(record.targets[0].masks)) > 0.5)
    fitted = fit_logistic(scores, correct)
    return replace(fitted, refuse_above=refusal_threshold(present))


def familiar(index: Index, cache: FeatureCache) -> Familiarity:
    """Centres of the training images' embeddings, limit from the validation images."""
    parts = {
        split: np.stack(
            [summary(cache.load(index.root / record.image, 0)) for record in index.records(split)]
        )
        for split in ("train", "val")
    }
    return fit_familiarity(parts["train"], parts["val"])


def trained_targets(index: Index) -> dict[str, dict[str, object]]:
    """`targets.json` before the test: how many training images each category had."""
    counts = Counter(label for record in index.records("train") for label in record.labels)
    return {
        label: {"n_train": count, "n_test": 0, "dice": None}
        for label, count in sorted(counts.items())
    }


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    union = (first | second).sum()
    return float((first & second).sum() / union) if union else 1.0
