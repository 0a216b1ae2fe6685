"""Fine-tuning on a user's own images: `finetune(own, settings)` is the door.

No weight of the model changes. `names` (see `names`) searches the states by which the frozen heads
find the new categories, `meaning` (see `meaning`) the states by which questions for them are told
from all others. What the model knew stays as it was.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..categories import Categories
from ..engine import compose_records
from ..errors import ModelError
from ..familiarity import Familiarity, summary
from ..hub import cache_folder, find_model, model_info
from ..model import MediSeeModel
from ..model.inference import load_weights
from ..model.mllm import SharedEncoderMLLM
from ..phrases import Phrasebook
from ..processing import MediSeeProcessor
from .context import Context, fixed_categories
from .encoding import encode_images
from .features import FeatureCache, fingerprint
from .meaning import run_meaning
from .names import run_names
from .own import OwnData
from .recipe import Stage
from .targets import Targets

MIX = {"referring": 0.35, "implicit": 0.45, "absent": 0.2}
NAMED_MIX = {"referring": 0.75, "absent": 0.25}
"""Where nothing is known of a category but its name."""

QUESTIONS = 20
"""Composed for each training image."""

VAL_RECORDS = 120


@dataclass(frozen=True)
class Settings:
    """How a fine-tuning runs.

    Attributes:
        init: name, folder or hub id of the model to start from.
        out: folder for what is found and the log; the model goes to `out`/model.
        steps: of the search for the states that the heads read; the default takes under half an
            hour, all else included, for 100 images on two cores.
    """

    init: str
    out: Path
    steps: int = 60
    threads: int = 2
    seed: int = 0
    cache: Path | None = None

    @property
    def names(self) -> Stage:
        """The search, as the stages of `train` are given."""
        return Stage(
            name="names",
            task="localise",
            steps=self.steps,
            batch=16,
            augment=0.5,
            warmup=10,
            rates={"read": 0.03},
            weights={"l1": 5.0, "giou": 2.0, "heat": 1.0, "bce": 1.0, "dice": 2.0},
            true_boxes=(0.5, 0.2),
        )


def finetune(own: OwnData, settings: Settings) -> Path:
    """Teaches a nano-like model the categories of a user's images; returns the model's folder.

    A stage that was finished is skipped.

    Raises:
        ModelError: a model that cannot be tuned in this way.
    """
    torch.set_num_threads(settings.threads)
    start = find_model(settings.init)
    context = prepare(own, settings, start)
    run_names(context, settings.names, settings.out / "names")
    run_meaning(context, settings.out / "meaning")
    folder = settings.out / "model"
    write_model(context, own, start, folder)
    return folder


def prepare(own: OwnData, settings: Settings, start: Path) -> Context:
    """Model, features and questions of a fine-tuning."""
    processor, known = MediSeeProcessor.from_pretrained(start), Categories.load(start)
    if known is None or known.read is None:
        raise ModelError(
            f"{start} has no states by which its heads know categories: fine-tune nano, or a model "
            "whose training ended with the stage align"
        )
    model = load_weights(start)
    if not isinstance(model.mllm, SharedEncoderMLLM):
        raise ModelError(f"{start} has an image encoder of its own: write a recipe for it")
    labels = [*known.names, *(label for label in own.labels if label not in known.names)]
    sizes = (model.config.num_candidates, model.config.hidden_size)
    categories = fixed_categories(labels, *sizes, settings.seed, known)
    categories.leads = known.leads
    train, val = _features(own, settings, model, processor, labels)
    mix = MIX if own.describes else NAMED_MIX
    train_records, val_records = (
        list(compose_records(own.index, own.entities, split, count, settings.seed, mix))
        for split, count in (("train", QUESTIONS * len(train.images)), ("val", VAL_RECORDS))
    )
    return Context(
        model=model,
        processor=processor,
        train=train,
        val=val,
        categories=categories,
        train_records=train_records,
        val_records=val_records,
        seed=settings.seed,
        known=len(known.names),
        familiar=Familiarity.of(start),
    )


def _features(
    own: OwnData,
    settings: Settings,
    model: MediSeeModel,
    processor: MediSeeProcessor,
    labels: list[str],
) -> tuple[Targets, Targets]:
    """Images for training and for measuring, encoded."""
    encoder, size = model.segmenter.vision_encoder, processor.config.segmenter_size
    folder = settings.cache or cache_folder() / "features"
    cache = FeatureCache(folder, fingerprint(encoder), size)
    encode_images(cache, [(own.index.root / record.image, 0) for record in own.index], encoder)
    train, val = (Targets(own.index, split, labels, cache, size) for split in ("train", "val"))
    return train, val


# ---- the folder ----------------------------------------------------------------------------------


def write_model(context: Context, own: OwnData, start: Path, folder: Path) -> None:
    """A folder that `medisee.load` opens: the start's, with what was found in place."""
    shutil.copytree(start, folder, dirs_exist_ok=True)
    processor = context.processor
    phrases = _with_phrases(processor.phrases, own)
    MediSeeProcessor(processor.config, processor.tokenizer, phrases).save_pretrained(folder)
    context.categories.save(folder)
    if context.familiar is not None:
        _with_images(context.familiar, context.train).save(folder)
    _write_targets(context.train, start, folder)
    (folder / "README.md").write_text(_card(own, start), encoding="utf-8")


def _with_phrases(known: Phrasebook | None, own: OwnData) -> Phrasebook | None:
    if known is None:
        return None
    new = {label: own.entities[label].explanation for label in own.labels}
    return Phrasebook({**new, **known.answers}, known.refusals)


def _with_images(known: Familiarity, data: Targets) -> Familiarity:
    """The new images are familiar from now on."""
    if known.limit == float("inf"):
        return known
    means = [summary(data.cache.load(data.path(row), 0)) for row in range(len(data.images))]
    centres = np.concatenate([known.centres, np.stack(means)])
    return Familiarity(centres.astype(np.float32), known.spread, known.limit)


def _write_targets(data: Targets, start: Path, folder: Path) -> None:
    known = {record.name: record for record in model_info(start)["targets"]}
    counts = {label: sum(label in r.labels for r in data.images) for label in data.labels}
    entries = {
        label: {
            "n_train": counts.get(label, 0) + (known[label].n_train if label in known else 0),
            "n_test": known[label].n_test if label in known else 0,
            "dice": known[label].dice if label in known else None,
        }
        for label in sorted({*known, *(label for label, count in counts.items() if count)})
    }
    text = json.dumps(entries, indent=1) + "\n"
    (folder / "targets.json").write_text(text, encoding="utf-8")


def _card(own: OwnData, start: Path) -> str:
    about = model_info(start)
    sources = [*about["sources"], *sorted({r.source for r in own.index if r.source})]
    listed = "".join(f"\n  - {source}" for source in dict.fromkeys(sources)) or " []"
    return CARD.format(
        licence=about["licence"].lower(),
        sources=listed,
        start=start.name,
        labels=", ".join(own.labels),
        count=sum(record.split == "train" for record in own.index),
    )


CARD = """---
license: {licence}
library_name: medisee
datasets:{sources}
---

# A fine-tuned {start}

Learned from {count} further images: {labels}. Everything else, its limits and its licence included,
is as the model card of {start} says. Scores are calibrated on that model's images, not on the new
ones.

**Research tool, not a medical device.** Never base a diagnosis or a treatment on it.
"""
