"""The paper's ablations at nano's size: what each row starts from, and how it is trained.

`ablations.yaml` states for each row only what differs from a common base. All rows start from one
untrained model, whose heads are drawn anew from the seed in the shape that the row asks for.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import AddedToken
from torch import Tensor

from ..errors import InputError, ModelError
from ..hub import find_model
from ..model import MediSeeConfig, MediSeeModel, SharedEncoderConfig, candidate_tokens
from ..model.inference import load_weights
from ..model.placement import compute_dtype
from ..processing import MediSeeProcessor
from . import train
from .recipe import Lora, Recipe

__all__ = ["Row", "Settings", "check_start", "choose_rows", "recipe_for", "train_row"]

HEADS = ("fusion.", "box_decoder.", "projector.")
"""What the paper adds; never taken over from the model that a row starts from."""

WARMUP = 0.1
"""Share of a stage's steps."""


class Row(BaseModel):
    """One row: what it changes of the base.

    Attributes:
        row: its key, and the folder of its run.
        what: what the table prints.
        paper: the published row that it stands beside.
        model: changed fields of `MediSeeConfig`.
        segmenter: `random` leaves the segmenter untrained, too.
        stages: changes to the base's stages, by name.
    """

    model_config = ConfigDict(extra="forbid")

    row: str
    what: str
    paper: str | None = None
    model: dict[str, Any] = Field(default_factory=dict)
    segmenter: Literal["trained", "random"] = "trained"
    lora: Lora | None = None
    stages: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @property
    def run(self) -> str:
        """Folder of its run; rows that change nothing share one."""
        changed = self.model or self.stages or self.lora or self.segmenter == "random"
        return self.row if changed else "base"


@dataclass(frozen=True)
class Settings:
    """What all rows have in common.

    Attributes:
        data: folder in SA-Med2D's layout.
        init: untrained model of nano's form, a folder.
        out: folder for the runs.
        samples: questions (or targets, where heads learn alone) that each stage sees; or
        steps: optimiser steps of each stage.
    """

    data: Path
    init: Path
    out: Path
    samples: int | None
    steps: int | None
    seed: int = 0
    threads: int = 2


@cache
def _stated() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("ablations.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def choose_rows(table: int, keys: list[str] | None = None) -> list[Row]:
    """The rows of a table of the paper (4, 5 or 6), or those named.

    Raises:
        InputError: a row that the table has not.
    """
    rows = {each["row"]: Row(**each) for each in _stated()["tables"][table]}
    if unknown := [key for key in keys or () if key not in rows]:
        raise InputError(f"table {table} has no row {unknown[0]!r}; it has {', '.join(rows)}")
    return [rows[key] for key in keys or rows]


def recipe_for(row: Row, settings: Settings) -> Recipe:
    """The whole recipe of a row."""
    base = {key: value for key, value in _stated()["base"].items() if key != "model"}
    folder = settings.out / row.run
    stages = _changed(base["stages"], row.stages)
    own: dict[str, Any] = {
        "data": str(settings.data),
        "init": str(folder / "start"),
        "out": str(folder),
        "seed": settings.seed,
        "threads": settings.threads,
        "precision": _precision(),
        "lora": row.lora,
        "stages": [_stage(name, values, settings) for name, values in stages.items()],
    }
    return Recipe(**{**base, **own})


def _precision() -> str:
    """bf16 where the machine has it; one that has not is far slower with it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16" if compute_dtype(device) == torch.bfloat16 else "fp32"


def _changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with changes at any depth; what is changed to None is left out."""
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        merged[key] = _changed(old, value) if isinstance(old, dict) else value
    return {key: value for key, value in merged.items() if value is not None}


def _stage(name: str, values: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """A stage of as many steps as the samples take."""
    steps = settings.steps
    if steps is None:
        assert settings.samples is not None
        steps = math.ceil(settings.samples / (values["batch"] * values.get("questions", 1)))
    warmup = math.ceil(WARMUP * steps)
    return {"name": name, "task": name, "steps": steps, "warmup": warmup, **values}


def check_start(init: str) -> Path:
    """The folder of a model that rows can start from.

    Raises:
        ModelError: no such model, or not of nano's form.
    """
    folder = find_model(init)
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = values["mllm"]["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'config.json'} is no configuration of MediSee") from error
    if kind != SharedEncoderConfig.model_type:
        raise ModelError(f"{init} is not of nano's form, at whose size the ablations are made")
    return folder


def train_row(row: Row, settings: Settings) -> Path:
    """Trains a row, or goes on with it; returns the folder of its model.

    Raises:
        DataError, ModelError: as `train` does.
    """
    recipe = recipe_for(row, settings)
    folder, start = Path(recipe.out), Path(recipe.init)
    model = folder / "model"
    if not (model / "targets.json").is_file():  # the last file that a training writes
        if not start.is_dir():
            _write_start(row, settings, start)
        train(recipe)
    # Checkpoints of whole models take gigabytes, and nothing goes on from here.
    for part in (start, *(folder / stage.name / "checkpoint" for stage in recipe.stages)):
        shutil.rmtree(part, ignore_errors=True)
    return model


def _write_start(row: Row, settings: Settings, folder: Path) -> None:
    """Writes what a row starts from; the folder appears only when it is complete."""
    model, processor = start_model(row, settings.init, settings.seed)
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model.save_pretrained(part)
    processor.save_pretrained(part)
    part.rename(folder)


def start_model(row: Row, init: Path, seed: int) -> tuple[MediSeeModel, MediSeeProcessor]:
    """The untrained model of a row.

    Language model and segmenter are those of `init`; candidate tokens that it lacks start at the
    mean of its token embeddings.
    """
    before, processor = load_weights(init), MediSeeProcessor.from_pretrained(init)
    changes = {**_stated()["base"]["model"], **row.model}
    names = candidate_tokens(changes["num_candidates"])
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    values = before.config.to_dict()
    values["mllm"]["text_config"]["vocab_size"] = tokenizer.get_vocab_size()
    ids = [tokenizer.token_to_id(name) for name in names]
    torch.manual_seed(seed)
    model = MediSeeModel(MediSeeConfig(**{**values, **changes, "candidate_token_ids": ids}))
    fresh = (*HEADS, "segmenter.") if row.segmenter == "random" else HEADS
    _take_over(model, before, fresh)
    # The paper scores the box that the decoder gives, not one drawn around the mask.
    config = replace(processor.config, candidates=tuple(names), mask_boxes=False)
    return model.eval(), MediSeeProcessor(config, tokenizer)


def _take_over(model: MediSeeModel, before: MediSeeModel, fresh: tuple[str, ...]) -> None:
    """Copies all weights but those whose names begin with `fresh`."""
    state = {n: v for n, v in before.state_dict().items() if not n.startswith(fresh)}
    table = "mllm.language_model.embed_tokens.weight"
    state[table] = _grown(state[table], len(model.state_dict()[table]))
    state.pop("mllm.lm_head.weight", None)  # tied to the table
    _, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    model.tie_weights()


def _grown(table: Tensor, rows: int) -> Tensor:
    mean = table.mean(dim=0, keepdim=True)
    return torch.cat([table, mean.expand(max(rows - len(table), 0), -1)])
