"""Training: one door, `train(recipe)`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..categories import Categories
from ..data.sa_med2d import Index
from ..engine import DEFAULT_MIX, compose_records
from ..entities import load_entities
from ..errors import DataError
from ..hub import cache_folder, find_model
from ..model.inference import load_weights
from ..processing import MediSeeProcessor
from ..structures import QARecord
from .adapters import add_lora, merge
from .align import run_align
from .context import Context, fixed_categories
from .encoding import encode_images
from .features import FeatureCache, fingerprint
from .finish import finish
from .loop import run_stage
from .recipe import Recipe, Stage, read_recipe
from .targets import Targets

VAL_RECORDS = 500
"""Questions that a stage is measured with."""

__all__ = ["Recipe", "Stage", "read_recipe", "train"]


def train(recipe: Recipe | str | Path) -> Path:
    """Runs a recipe; returns the folder of the trained model.

    A stage that was begun goes on from its last checkpoint, one that was finished is skipped.

    Raises:
        DataError: a recipe, data set or checkpoint that cannot be used.
        ModelError: a model folder that cannot be used.
    """
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe)
    torch.set_num_threads(recipe.threads)
    out = Path(recipe.out)
    context = prepare(recipe)
    for stage in recipe.stages:
        run = run_align if stage.task == "align" else run_stage
        run(context, recipe, stage, out / stage.name)
    merge(context.model)
    final = out / "model"
    finish(
        context.model,
        context.processor,
        context.val.index,
        context.val_records,
        context.val.cache,
        context.categories,
        final,
    )
    return final


def prepare(recipe: Recipe) -> Context:
    """Model, features and questions of a run."""
    index = Index.open(recipe.data)
    start = find_model(recipe.init)
    processor = MediSeeProcessor.from_pretrained(start)
    model = load_weights(start)
    if recipe.lora is not None:
        add_lora(model, recipe.lora)
    entities = load_entities()
    labels = sorted({label for r in index.records("train") for label in r.labels} & set(entities))
    if not labels:
        raise DataError(f"{recipe.data} has no training image with a known label")
    size = processor.config.segmenter_size
    encoder = model.segmenter.vision_encoder
    cache = FeatureCache(_cache_folder(recipe), fingerprint(encoder), size)
    views = {"train": recipe.views, "val": 1}
    shown = [
        (index.root / record.image, view)
        for split, count in views.items()
        for view in range(count)
        for record in index.records(split)
    ]
    encode_images(cache, shown, encoder)
    train_split, val_split = (
        Targets(index, split, labels, cache, size, count) for split, count in views.items()
    )
    return Context(
        model=model,
        processor=processor,
        train=train_split,
        val=val_split,
        categories=fixed_categories(
            labels,
            model.config.num_candidates,
            model.config.hidden_size,
            recipe.states_seed,
            Categories.load(start),
        ),
        train_records=_questions(train_split, recipe.records, recipe.seed, recipe.mix),
        val_records=_questions(val_split, VAL_RECORDS, recipe.seed, DEFAULT_MIX),
        seed=recipe.seed,
    )


def _questions(data: Targets, count: int, seed: int, mix: Mapping[str, float]) -> list[QARecord]:
    """Composed questions about the images and categories that are trained."""
    known = set(data.labels)
    records = compose_records(data.index, load_entities(), data.split, count, seed, mix)
    return [
        record
        for record in records
        if record.image in data.row and {target.label for target in record.targets} <= known
    ]


def _cache_folder(recipe: Recipe) -> Path:
    return cache_folder() / "features" if recipe.cache is None else Path(recipe.cache)
