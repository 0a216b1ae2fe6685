"""A training run as a YAML file: what is trained on what, in which stages, at which rates."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..engine import DEFAULT_MIX
from ..errors import DataError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Lora(_Strict):
    """Adapters of the language model or the segmenter's encoder; the defaults are the paper's."""

    part: Literal["language", "encoder"] = "language"
    rank: int = Field(8, gt=0)
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    projections: tuple[str, ...] = ("q_proj", "v_proj")


class Stage(_Strict):
    """One stage of a run.

    Attributes:
        name: folder name of its checkpoints.
        task: `localise` and `masks` train the heads on fixed category states, `language` trains
            the MLLM to emit those states and to explain, `align` fits the heads' first layers to
            the emitted states in closed form, `joint` trains everything end to end.
        steps, batch: optimiser steps, and targets (heads) or images (language, joint) a step.
        questions: questions per image in a step (language, joint).
        templates: share of questions that name their target (SA-Med2D's templates; the paper's
            first stage has 0.7, its second 0); all questions as they are by default.
        accumulate: batches whose gradients are averaged for one optimiser step; several processes
            share them.
        rates: learning rate of each parameter-name prefix, and of `.lora_` for all adapters;
            whatever is not named is frozen. Where parts of `segmenter.vision_encoder` are named,
            images are encoded in each step, which wants a GPU.
        weights: weight of each loss term.
        warmup: steps of linear warm-up.
        decay: what follows, a `cosine` down to a twentieth or a `linear` fall to nothing.
        augment: probability that an example is cropped, shifted and scaled.
        explain: share of answers whose explanation is supervised too.
        true_boxes: (start, end) share of true, jittered boxes that prompt the mask decoder.
        validate_every: steps between two measurements on the validation split.
    """

    name: str
    task: Literal["localise", "masks", "language", "align", "joint"]
    steps: int = Field(gt=0)
    batch: int = Field(gt=0)
    questions: int = Field(8, gt=0)
    templates: float | None = Field(None, ge=0, le=1)
    accumulate: int = Field(1, gt=0)
    rates: dict[str, float] = Field(default_factory=dict)
    weights: dict[str, float] = Field(default_factory=dict)
    warmup: int = 100
    decay: Literal["cosine", "linear"] = "cosine"
    augment: float = 0.0
    explain: float = 1.0
    true_boxes: tuple[float, float] = (1.0, 0.2)
    validate_every: int = 500
    weight_decay: float = 0.01
    clip: float = 1.0


class Recipe(_Strict):
    """A whole run.

    Attributes:
        data: folder in SA-Med2D's layout with `index.jsonl`.
        init: folder of the model to start from, or "nano" for the shipped one.
        out: folder for checkpoints, logs and the trained model.
        cache: folder for the frozen encoder's features; the platform's cache folder by default.
        views: renderings of each training image: itself, and views - 1 with other intensities.
        qa: folder of a question set built from these data (`medisee data build`), to which
            only questions that name their target are composed; without it all are composed.
        mix: share of each kind of question; the offline writer's own by default.
        records: questions composed per split by the offline writer.
        states_seed: seed of the fixed category states.
        threads: CPU threads.
        precision: `bf16` computes matrix products in bfloat16; what is trained stays fp32.
        base: how frozen weights are kept: `fp32`, `bf16`, or the language model's layers beneath
            adapters in `int8` or `int4` (which needs bitsandbytes) and all else in bf16.
        recompute: gradient checkpointing of the language model: its layers run again in the
            backward pass, instead of keeping what passed through them.
        checkpoint_every: steps between two checkpoints.
        trackers: accelerate's loggers beside `metrics.jsonl`; those not installed are left out.
        lora: adapters beside frozen projections; none by default.
    """

    data: str
    init: str
    out: str
    cache: str | None = None
    qa: str | None = None
    seed: int = 0
    states_seed: int = 7
    views: int = Field(1, gt=0)
    mix: dict[str, float] = Field(default_factory=lambda: dict(DEFAULT_MIX))
    records: int = 60_000
    threads: int = Field(2, gt=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    base: Literal["fp32", "bf16", "int8", "int4"] = "fp32"
    recompute: bool = False
    checkpoint_every: int = 250
    trackers: list[str] = Field(default_factory=lambda: ["tensorboard"])
    lora: Lora | None = None
    stages: list[Stage]

    @model_validator(mode="after")
    def _base_fits(self) -> Recipe:
        if self.base != "fp32" and self.precision != "bf16":
            raise ValueError(f"base: {self.base} needs precision: bf16")
        if self.base.startswith("int") and self.lora is None:
            raise ValueError(f"base: {self.base} needs lora, for such weights cannot be trained")
        return self

    @property
    def emits_states(self) -> bool:
        """Whether the language model learns the categories' fixed states (nano's form)."""
        tasks = {stage.task for stage in self.stages}
        named = any("state" in stage.weights for stage in self.stages)
        return named or not tasks <= {"joint", "language"}


def read_recipe(path: str | Path) -> Recipe:
    """Reads and checks a recipe.

    Raises:
        DataError: naming the field that is wrong.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"the recipe {path} is not valid YAML") from error
    if not isinstance(values, dict):
        raise DataError(f"the recipe {path} must be a mapping of settings")
    try:
        return Recipe(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"recipe {path}: {where}: {first['msg']}") from error
