"""The language model learns to read new categories' questions, and answers old ones as before.

The images that it was trained on are not at hand. In their place stand the new images' features,
moved so that their mean is that of a kind of image it was trained on: a model keeps such means to
tell familiar images (`familiarity`). What the untouched model says to old questions about them is
what the tuned one is held to (learning without forgetting, Li and Hoiem 2017).
"""

from __future__ import annotations

import copy
import random as plain_random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.sa_med2d import ImageRecord
from ..engine import referring_question
from ..entities import Entity, load_entities
from ..model import MediSeeModel
from .context import Context, Losses
from .language import Language, category_scores, text_batch
from .recipe import Stage

MEASURED = 6
"""Batches of old questions that tell what is kept."""


@dataclass(frozen=True)
class Said:
    """What a model says to Q questions: logits (A, V) of the supervised words, states (Q, n, d)."""

    logits: Tensor
    states: Tensor

    @classmethod
    def by(cls, model: MediSeeModel, arguments: dict[str, Tensor]) -> Said:
        output = model(**arguments, locate=False)
        return cls(output.logits, output.states)


@dataclass(frozen=True)
class _Asked:
    """Old questions about stand-ins for old images, and what the untouched model says to them."""

    arguments: dict[str, Tensor]
    before: Said


class Adapt(Language):
    """`language`, and beside each new question an old one, of which nothing is to change."""

    def __init__(self, context: Context, stage: Stage) -> None:
        super().__init__(context, stage)
        assert context.familiar is not None
        self.untouched = copy.deepcopy(context.model).eval().requires_grad_(False)
        self.means = torch.from_numpy(context.familiar.centres)
        entities = load_entities()
        known = context.categories.names[: context.known]
        self.old = [entities[name] for name in known if name in entities]

    def losses(self, step: int, progress: float) -> Losses:
        asked = self._ask(np.random.default_rng([self.context.seed, step, 13]))
        now = Said.by(self.context.model, asked.arguments)
        return super().losses(step, progress) | kept_losses(now, asked.before)

    def validate(self) -> dict[str, float]:
        """As `language`; `kept`, of fixed old questions, is the share answered as before."""
        random = np.random.default_rng(0)
        kept = [self._kept(self._ask(random)) for _ in range(MEASURED)]
        return super().validate() | {"kept": float(np.mean(kept))}

    def _ask(self, random: np.random.Generator) -> _Asked:
        data, processor = self.context.train, self.context.processor
        count = min(self.stage.batch, len(data.images))
        images = random.choice(len(data.images), count, replace=False).tolist()
        features = data.pooled[images, self._views(count, random)].float()
        means = self.means[random.integers(len(self.means), size=count)]
        features = features + (means - features.mean(dim=(2, 3)))[:, :, None, None]
        places = [place for place in range(count) for _ in range(self.stage.questions)]
        rng = plain_random.Random(int(random.integers(2**31)))
        asked = [
            processor.question_ids(_question(data.images[images[place]], rng.choice(self.old), rng))
            for place in places
        ]
        # The word after the group tells whether another follows; its own id does not matter.
        answered = [[*processor.group, processor.end_id]] * len(asked)
        arguments = {
            **text_batch(processor, asked, answered, places, count),
            "content": data.content[images],
            "segmenter_embedding": features,
        }
        with torch.no_grad():
            return _Asked(arguments, Said.by(self.untouched, arguments))

    @torch.inference_mode()
    def _kept(self, asked: _Asked) -> float:
        """Share of questions with the same category and the same first word as before."""
        now, states = Said.by(self.context.model, asked.arguments), self.context.states
        same = [
            (category_scores(said.states, states).argmax(dim=1), self._openings(said))
            for said in (now, asked.before)
        ]
        (name, first), (name_before, first_before) = same
        return float(((name == name_before) & (first == first_before)).float().mean())

    def _openings(self, said: Said) -> Tensor:
        """(Q,) the first word of each answer, "here" or a refusal's."""
        processor = self.context.processor
        firsts = said.logits[:: len(processor.group) + 1]
        return firsts[:, processor.openings].argmax(dim=1)


def _question(image: ImageRecord, entity: Entity, rng: plain_random.Random) -> str:
    """About a category that the model knows: named, asked or described."""
    choices = [referring_question(image, entity, rng), *entity.questions]
    choices += [f"Where is {description}?" for description in entity.descriptions]
    return rng.choice(choices[:1] if rng.random() < 0.3 else choices)


def kept_losses(now: Said, before: Said) -> Losses:
    """How far what is said to the same questions has moved: `kept_words` and `kept_states`.

    `kept_words` is the Kullback-Leibler divergence of the next words, mean over the supervised
    places; `kept_states` the mean squared difference of the candidate states.
    """
    logits = now.logits.float().log_softmax(dim=-1), before.logits.float().log_softmax(dim=-1)
    return {
        "kept_words": F.kl_div(*logits, reduction="batchmean", log_target=True),
        "kept_states": F.mse_loss(now.states.float(), before.states.float()),
    }
