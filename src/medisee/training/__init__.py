"""Training: one door, `train(recipe)`."""

from __future__ import annotations

from pathlib import Path

import torch

from ..data.sa_med2d import Index
from ..engine import compose_records
from ..entities import load_entities
from ..errors import DataError
from ..hub import find_model
from ..model.inference import load_weights
from ..processing import MediSeeProcessor
from ..structures import QARecord
from .encoding import encode_images
from .features import FeatureCache, fingerprint
from .finish import finish
from .loop import run_stage
from .recipe import Recipe, Stage, read_recipe
from .targets import Targets
from .tasks import Context, category_states

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
        run_stage(context, recipe, stage, out / stage.name)
    final = out / "model"
    finish(
        context.model,
        context.processor,
        context.val.index,
        context.val_records,
        context.val.cache,
        final,
    )
    return final


def prepare(recipe: Recipe) -> Context:
    """Model, features and questions of a run."""
    index = Index.open(recipe.data)
    start = find_model(recipe.init)
    processor = MediSeeProcessor.from_pretrained(start)
    model = load_weights(start)
    entities = load_entities()
    labels = sorted({label for r in index.records("train") for label in r.labels} & set(entities))
    if not labels:
        raise DataError(f"{recipe.data} has no training image with a known label")
    size = processor.config.segmenter_size
    encoder = model.segmenter.vision_encoder
    cache = FeatureCache(_cache_folder(recipe), fingerprint(encoder), size)
    files = [index.root / r.image for s in ("train", "val") for r in index.records(s)]
    encode_images(cache, files, encoder)
    return Context(
        model=model,
        processor=processor,
        train=Targets(index, "train", labels, cache, size),
        val=Targets(index, "val", labels, cache, size),
        states=category_states(
            labels, model.config.num_candidates, model.config.hidden_size, recipe.states_seed
        ),
        train_records=_questions(index, "train", recipe.records, recipe.seed, labels),
        val_records=_questions(index, "val", VAL_RECORDS, recipe.seed, labels),
        seed=recipe.seed,
    )


def _questions(
    index: Index, split: str, count: int, seed: int, labels: list[str]
) -> list[QARecord]:
    """Composed questions whose targets are all among the categories that are trained."""
    records = compose_records(index, load_entities(), split, count, seed)
    return [r for r in records if {target.label for target in r.targets} <= set(labels)]


def _cache_folder(recipe: Recipe) -> Path:
    if recipe.cache is not None:
        return Path(recipe.cache)
    from platformdirs import user_cache_path

    return user_cache_path("medisee") / "features"
