"""What a build through an endpoint will cost, told before it begins."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from medisee.data.sa_med2d import ImageRecord, Index
from medisee.engine.intake import take_in
from medisee.engine.scene import Scene
from medisee.engine.staged.prompts import prompt
from medisee.engine.staged.writer import StagedWriter
from medisee.entities import load_entities

__all__ = ["Estimate", "estimate"]

_SAMPLE = 16  # images whose prompts are written to the letter


@dataclass
class Estimate:
    """Calls by stage, tokens and cost of a whole build if every first reply can be used."""

    calls: Counter[str] = field(default_factory=Counter)
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    cost: float = 0.0


def estimate(writer: StagedWriter, data: Path, per_target: int) -> Estimate:
    """Writes the prompts of a few images, spread over the data set, and scales them up.

    Nothing is sent. Calls follow from the number of labels, tokens from the words.
    """
    index, entities = Index.open(data), load_entities()
    images = pairs = 0
    for entry in index.entries():
        if isinstance(entry, ImageRecord):
            images, pairs = images + 1, pairs + len(entry.labels)
    found, sampled = Estimate(), 0
    for entry in islice(index.entries(), 0, None, max(1, images // _SAMPLE)):
        if not isinstance(entry, ImageRecord):
            continue
        taken = take_in(index, entry, entities)
        weights = dict.fromkeys(taken.shapes, 1.0)
        scene = Scene(taken.image, taken.shapes, entities, weights, random.Random(0))
        sampled += len(entry.labels)
        _add(found, writer, scene, per_target)
    return _scaled(found, pairs / max(1, sampled))


def _add(found: Estimate, writer: StagedWriter, scene: Scene, per_target: int) -> None:
    for answering, call in writer.rehearse(scene, per_target):
        tokens = answering.tokens(call), call.items * prompt(call.stage).tokens_per_item
        found.calls[call.stage] += 1
        found.tokens_in += tokens[0]
        found.tokens_out += tokens[1]
        found.cost += answering.cost(*tokens)


def _scaled(found: Estimate, factor: float) -> Estimate:
    calls = Counter({stage: round(number * factor) for stage, number in found.calls.items()})
    return Estimate(calls, found.tokens_in * factor, found.tokens_out * factor, found.cost * factor)
