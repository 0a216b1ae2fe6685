"""MediSee and the systems that are the same network with other settings: LISA and READ.

Input, prompt and thresholds are those of the model's folder (`medisee convert` writes them for the
official checkpoints). LISA has one candidate token and no box decoder; READ adds points.
"""

from __future__ import annotations

import json
from typing import Any

from medisee.errors import DataError
from medisee.evaluation.predictions import Model
from medisee.evaluation.systems import Setup
from medisee.hub import find_model

__all__ = ["build", "lisa", "with_points"]


def build(setup: Setup, model: str, runtime: str | None = None) -> Model:
    """Any MediSee model: name, folder or hub id."""
    from medisee.predictor import load

    return load(model, setup.device, runtime)


def lisa(setup: Setup, model: str) -> Model:
    """LISA as converted: one candidate token, its text embedding prompts the mask alone."""
    _expect(model, {"num_candidates": 1, "box_decoder": "none", "mask_prompts": "text"})
    return build(setup, model)


def with_points(setup: Setup, model: str) -> Model:
    """MediSee + READ: points from the similarity map stand beside text and box."""
    _expect(model, {"mask_prompts": "text+box+points"})
    return build(setup, model)


def _expect(model: str, settings: dict[str, Any]) -> None:
    config = json.loads((find_model(model) / "config.json").read_text(encoding="utf-8"))
    for name, value in settings.items():
        if config.get(name) != value:
            raise DataError(
                f"{model} is another system: its {name} is {config.get(name)!r}, not {value!r}"
            )
