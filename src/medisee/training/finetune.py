"""Fine-tuning on a user's own images: `finetune(own, settings)` is the door.

Two short stages. `names` (see `names`) searches the states by which the frozen heads find the new
categories; `adapt` (see `adapt`) teaches the language model to emit them, at a low rate and held
to what it said before. What the model knew stays as it was wherever that can be had.
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
from ..hub import GRAPHS, cache_folder, compiled, find_model, model_info
from ..model.inference import load_weights
from ..model.mllm import SharedEncoderMLLM
from ..phrases import Phrasebook
from ..processing import MediSeeProcessor
from ..runtime import weights_digest
from .context import Context, fixed_categories
from .encoding import encode_images
from .features import FeatureCache, fingerprint
from .loop import run_stage
from .names import run_names
from .own import OwnData
from .recipe import Recipe, Stage
from .targets import Targets

MIX = {"referring": 0.3, "implicit": 0.4, "absent": 0.2, "several": 0.05, "round": 0.05}
NAMED_MIX = {"referring": 0.75, "absent": 0.25}
"""Where nothing is known of a category but its name."""

VAL_RECORDS = 120


@dataclass(frozen=True)
class Settings:
    """How a fine-tuning runs.

    Attributes:
        init: name, folder or hub id of the model to start from.
        out: folder for checkpoints and log; the model goes to `out`/model.
        names_steps, adapt_steps: steps of the two stages; the defaults take under half an hour for
            100 images on two cores.
    """

    init: str
    out: Path
    names_steps: int = 60
    adapt_steps: int = 30
    threads: int = 2
    seed: int = 0
    cache: Path | None = None

    def recipe(self, data: Path) -> Recipe:
        """As the stages of `train` are given."""
        cache = cache_folder() / "features" if self.cache is None else self.cache
        return Recipe(
            data=str(data),
            init=self.init,
            out=str(self.out),
            cache=str(cache),
            seed=self.seed,
            threads=self.threads,
            precision="fp32",
            checkpoint_every=25,
            stages=[
                Stage(
                    name="names",
                    task="names",
                    steps=self.names_steps,
                    batch=16,
                    augment=0.5,
                    warmup=10,
                    rates={"read": 0.03},
                    weights={"l1": 5.0, "giou": 2.0, "heat": 1.0, "bce": 1.0, "dice": 2.0},
                    true_boxes=(0.5, 0.2),
                ),
                Stage(
                    name="adapt",
                    task="adapt",
                    steps=self.adapt_steps,
                    batch=3,
                    questions=5,
                    explain=0.1,
                    warmup=10,
                    rates={"mllm.language_model.layers": 3e-4},
                    weights={
                        "text": 0.3, "decision": 2.0, "state": 2.0, "category": 2.0,
                        "kept_words": 2.0, "kept_states": 4.0,
                    },
                ),
            ],
        )  # fmt: skip


def finetune(own: OwnData, settings: Settings) -> Path:
    """Teaches a nano-like model the categories of a user's images; returns the model's folder.

    A stage that was begun goes on from its last checkpoint, one that was finished is skipped.

    Raises:
        ModelError: a model that cannot be tuned in this way.
    """
    recipe = settings.recipe(own.index.root)
    torch.set_num_threads(recipe.threads)
    start = find_model(recipe.init)
    context = prepare(own, recipe, start)
    names, adapt = recipe.stages
    run_names(context, recipe, names, settings.out / names.name)
    run_stage(context, recipe, adapt, settings.out / adapt.name)
    folder = settings.out / "model"
    write_model(context, own, start, folder)
    return folder


def prepare(own: OwnData, recipe: Recipe, start: Path) -> Context:
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
    width, seed = model.config.hidden_size, recipe.states_seed
    categories = fixed_categories(labels, model.config.num_candidates, width, seed, known)
    encoder, size = model.segmenter.vision_encoder, processor.config.segmenter_size
    assert recipe.cache is not None
    cache = FeatureCache(Path(recipe.cache), fingerprint(encoder), size)
    views = {"train": recipe.views, "val": 1}
    shown = [
        (own.index.root / record.image, view)
        for record in own.index
        for view in range(views[record.split])
    ]
    encode_images(cache, shown, encoder)
    train, val = (Targets(own.index, s, labels, cache, size, count) for s, count in views.items())
    mix = MIX if own.describes else NAMED_MIX
    asked = [
        list(compose_records(own.index, own.entities, split, count, recipe.seed, mix))
        for split, count in (("train", 40 * len(train.images)), ("val", VAL_RECORDS))
    ]
    return Context(
        model=model,
        processor=processor,
        train=train,
        val=val,
        categories=categories,
        train_records=asked[0],
        val_records=asked[1],
        seed=recipe.seed,
        known=len(known.names),
        familiar=Familiarity.of(start),
    )


# ---- the folder ----------------------------------------------------------------------------------


def write_model(context: Context, own: OwnData, start: Path, folder: Path) -> None:
    """A folder that `medisee.load` opens: the start's, with what was learned in place."""
    folder.mkdir(parents=True, exist_ok=True)
    processor, model = context.processor, context.model
    phrases = _with_phrases(processor.phrases, own)
    MediSeeProcessor(processor.config, processor.tokenizer, phrases).save_pretrained(folder)
    context.categories.save(folder)
    model.save_packed(folder)
    if (start / "calibration.json").is_file():
        shutil.copyfile(start / "calibration.json", folder / "calibration.json")
    if context.familiar is not None:
        _with_images(context.familiar, context.train).save(folder)
    _write_targets(context.train, start, folder)
    (folder / "README.md").write_text(_card(own, start), encoding="utf-8")
    if compiled(start) and weights_digest(start) == weights_digest(folder):
        for name in GRAPHS:  # they hold no weights, only where each one lies
            shutil.copyfile(start / f"{name}.onnx", folder / f"{name}.onnx")


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
