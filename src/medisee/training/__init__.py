"""Training: one door, `train(recipe)`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import torch
from accelerate import Accelerator

from ..categories import Categories
from ..data.mlmr_sd import read_records
from ..data.sa_med2d import Index
from ..engine import DEFAULT_MIX, compose_records
from ..entities import load_entities
from ..errors import DataError
from ..hub import cache_folder, find_model
from ..model import MediSeeModel
from ..processing import MediSeeProcessor
from ..structures import QARecord
from .align import run_align
from .context import Context, fixed_categories
from .encoding import encode_images
from .features import FeatureCache, fingerprint
from .finish import finish
from .loop import run_stage
from .machine import find_machine
from .recipe import Recipe, Stage, read_recipe
from .targets import Targets
from .weights import load_trainable, whole_model

VAL_RECORDS = 500
"""Questions that a stage is measured with."""

__all__ = ["Recipe", "Stage", "read_recipe", "train"]


def train(recipe: Recipe | str | Path) -> Path:
    """Runs a recipe; returns the folder of the trained model.

    A stage that was begun goes on from its last checkpoint, one that was finished is skipped.
    Started by `torchrun` or `accelerate launch`, several processes share the batches.

    Raises:
        DataError: a recipe, data set or checkpoint that cannot be used.
        ModelError: a model folder that cannot be used.
    """
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe)
    torch.set_num_threads(recipe.threads)
    out = Path(recipe.out)
    context = prepare(recipe)
    context.machine.wait_for_everyone()  # nobody writes before all have looked at what is there
    context.machine.init_trackers("tracked")
    for stage in recipe.stages:
        run = run_align if stage.task == "align" else run_stage
        run(context, recipe, stage, out / stage.name)
        if context.trains_encoder:
            _encode_anew(context, recipe)
    if context.machine.is_main_process:
        context.model = whole_model(context.model, find_model(recipe.init), recipe)
        finish(context, out / "model")
    context.machine.end_training()
    return out / "model"


def prepare(recipe: Recipe, index: Index | None = None) -> Context:
    """Model, features and questions of a run, about the recipe's data or a part of them."""
    machine = find_machine(recipe)
    index = Index.open(recipe.data) if index is None else index
    start = find_model(recipe.init)
    processor = MediSeeProcessor.from_pretrained(start)
    entities = load_entities()
    labels = sorted({label for r in index.records("train") for label in r.labels} & set(entities))
    if not labels:
        raise DataError(f"{recipe.data} has no training image with a known label")
    model = load_trainable(start, recipe, machine.device).requires_grad_(False)
    cache = _encoded(recipe, index, model, machine)
    side = 4 * model.config.segmenter.embedding_size
    train_split, val_split = (
        Targets(index, split, labels, cache, cache.size, count, side)
        for split, count in _views(recipe).items()
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
        train_records=list(_questions(train_split, recipe, recipe.records, recipe.mix)),
        val_records=list(_questions(val_split, recipe, VAL_RECORDS, DEFAULT_MIX)),
        seed=recipe.seed,
        machine=machine,
        emits_states=recipe.emits_states,
    )


def _views(recipe: Recipe) -> dict[str, int]:
    """Renderings of each image of a split."""
    return {"train": recipe.views, "val": 1}


def _encoded(
    recipe: Recipe, index: Index, model: MediSeeModel, machine: Accelerator
) -> FeatureCache:
    """What the model's encoder makes of every image and view, encoded where it is not there yet."""
    encoder, config = model.segmenter.vision_encoder, model.config.segmenter
    folder = cache_folder() / "features" if recipe.cache is None else Path(recipe.cache)
    cache = FeatureCache(
        folder, fingerprint(encoder), config.image_size, config.normalisation, config.pad
    )
    shown = [
        (index.root / record.image, view)
        for split, count in _views(recipe).items()
        for view in range(count)
        for record in index.records(split)
    ]
    encode_images(cache, shown[machine.process_index :: machine.num_processes], encoder)
    machine.wait_for_everyone()
    return cache


def _encode_anew(context: Context, recipe: Recipe) -> None:
    """The image encoder was trained, and stays from now on as it is."""
    context.model.segmenter.vision_encoder.requires_grad_(False)
    cache = _encoded(recipe, context.train.index, context.model, context.machine)
    context.train.renew(cache)
    context.val.renew(cache)


def _questions(
    data: Targets, recipe: Recipe, count: int, mix: Mapping[str, float]
) -> Iterator[QARecord]:
    """Questions about the images and categories that are trained: a built set's, and composed."""
    known, index = set(data.labels), data.index
    built = None if recipe.qa is None else Path(recipe.qa) / f"{data.split}.jsonl"
    asked: Iterable[QARecord] = () if built is None else read_records(built)
    wanted = mix if built is None else {"referring": 1.0}
    composed = compose_records(index, load_entities(), data.split, count, recipe.seed, wanted)
    for record in chain(asked, composed):
        if record.image in data.row and {target.label for target in record.targets} <= known:
            yield record
