"""Finds what the language model means when it is asked for a new category: nothing of it changes.

Asked for something that it never learned, the language model still emits states of a certain
direction. The direction that tells these from all that it emits for known categories becomes the
state of the new one in `Categories`: known categories lose no more than what the new direction
takes from them. How far a new category must be ahead of all others to be there for sure is read off
the same questions, for the language model refuses half of what it does not know.

The images that the model was trained on are not at hand. In their place stand the new images'
features, moved so that their mean is that of a kind of image it was trained on: a model keeps such
means to tell familiar images (`familiarity`). Old questions, and new ones, are asked about them,
and none of these may be taken for a new category.

Shape letters: Q questions, k known and m new categories, n candidates, d width, D = n d.
"""

from __future__ import annotations

import random as plain_random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ..categories import TEMPERATURE, Categories
from ..data.sa_med2d import ImageRecord
from ..engine import referring_question
from ..entities import Entity, load_entities
from ..structures import QARecord
from .context import Context
from .language import text_batch
from .loop import MetricsLog
from .targets import Targets

IMAGES = 80
"""So many training images are asked about at most."""
NEW, OLD, STRANGE = 12, 8, 2
"""Questions: new ones about an image; old ones, and new ones, about a stand-in of an old image."""
KEEP = 3.0
"""Weight of the questions that must not be taken for a new category, against those that must."""
SURE = 0.9
"""Share of the new categories' questions that are answered whatever the decision says."""
LENGTH = 0.25
"""Of a new category's own part, so that what all categories have in common hardly moves."""


@dataclass(frozen=True)
class Emitted:
    """What the language model emits: unit directions (Q, D), new category of each (Q,), or -1."""

    directions: Tensor
    labels: Tensor


def run_meaning(context: Context, folder: Path) -> None:
    """Searches the states of all categories that are new to the model, once."""
    found = Categories.load(folder)
    if found is None:
        found = _searched(context, folder)
        found.save(folder)
    context.categories = found


def _searched(context: Context, folder: Path) -> Categories:
    context.model.requires_grad_(False).eval()
    folder.mkdir(parents=True, exist_ok=True)
    asked = _answers(context, context.train, context.train_records)
    known = _directions(context, context.states[: context.known])
    emitted = _joined(context, [*asked, *_stand_ins(context)])
    fresh = sorted(set(emitted.labels.tolist()) - {-1})
    if not fresh:
        return context.categories
    new = search(emitted, known, fresh)
    ahead = _ahead(emitted.directions, known, new)
    leads = {
        context.categories.names[label]: max(0.0, _lead(ahead[emitted.labels == label, row]))
        for row, label in enumerate(fresh)
    }
    found = _with_states(context.categories, fresh, new.numpy(), leads)
    metrics = _measured(found, context)
    MetricsLog(folder / "metrics.jsonl").write("meaning", len(emitted.labels), 0.0, {}, metrics)
    return found


def search(emitted: Emitted, known: Tensor, fresh: list[int]) -> Tensor:
    """Unit directions (m, D) of the `fresh` categories among the `known` ones (k, D).

    Cross-entropy of the scores that will name them; a question without a new category may fall to
    any known one, so that these keep theirs.
    """
    allowed = torch.zeros(len(emitted.labels), len(known) + len(fresh), dtype=torch.bool)
    allowed[emitted.labels < 0, : len(known)] = True
    for row, label in enumerate(fresh):
        allowed[emitted.labels == label, len(known) + row] = True
    wanted = emitted.labels >= 0
    weights = wanted / wanted.sum() + KEEP * ~wanted / max(int((~wanted).sum()), 1)
    before = emitted.directions @ known.T
    means = [emitted.directions[emitted.labels == label].mean(dim=0) for label in fresh]
    free = F.normalize(torch.stack(means), dim=1).requires_grad_()
    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        new = emitted.directions @ F.normalize(free, dim=1).T
        scores = torch.cat([before, new], dim=1) / TEMPERATURE
        right = scores.masked_fill(~allowed, -torch.inf).logsumexp(dim=1)
        total = (weights * (scores.logsumexp(dim=1) - right)).sum()
        total.backward()
        return total

    optimizer.step(loss)
    return F.normalize(free.detach(), dim=1)


# ---- questions -----------------------------------------------------------------------------------


def _answers(
    context: Context, data: Targets, records: list[QARecord]
) -> Iterator[tuple[Tensor, list[int]]]:
    """Of each image, states (Q, n, d) for new questions and their new categories."""
    grouped: dict[int, list[QARecord]] = defaultdict(list)
    for record in records:
        if not record.history and len(record.targets) < 2:
            grouped[data.row[record.image]].append(record)
    rows = sorted(grouped)[:IMAGES]
    for row in track(rows, f"asking ({data.split})", console=Console(stderr=True)):
        chosen = grouped[row][:NEW]
        states = _emitted(context, data.pooled[[row], 0].float(), [r.question for r in chosen])
        yield states, [_new(context, record) for record in chosen]


def _stand_ins(context: Context) -> Iterator[tuple[Tensor, list[int]]]:
    """Likewise, of stand-ins for old images; none of their questions has a new category."""
    assert context.familiar is not None
    data, means = context.train, torch.from_numpy(context.familiar.centres)
    entities, rng = load_entities(), plain_random.Random(context.seed)
    names = context.categories.names[: context.known]
    old = [entities[name] for name in names if name in entities]
    strange = [r.question for r in context.train_records if _new(context, r) >= 0]
    rows = rng.sample(range(len(data.images)), min(IMAGES, len(data.images)))
    for row in track(rows, "asking (old)", console=Console(stderr=True)):
        features = data.pooled[[row], 0].float()
        moved = rng.choice(means) - features.mean(dim=(2, 3))
        meant = rng.choices(old, k=OLD) if old else []
        asked = [_question(data.images[row], entity, rng) for entity in meant]
        asked += rng.sample(strange, min(STRANGE, len(strange)))
        yield _emitted(context, features + moved[:, :, None, None], asked), [-1] * len(asked)


def _question(image: ImageRecord, entity: Entity, rng: plain_random.Random) -> str:
    """About a category that the model knows: named, asked or described."""
    choices = [referring_question(image, entity, rng), *entity.questions]
    choices += [f"Where is {description}?" for description in entity.descriptions]
    return rng.choice(choices[:1] if rng.random() < 0.3 else choices)


def _new(context: Context, record: QARecord) -> int:
    """The number of the new category that a question is about, or -1."""
    numbers = [context.categories.names.index(target.label) for target in record.targets]
    return next((number for number in numbers if number >= context.known), -1)


@torch.inference_mode()
def _emitted(context: Context, features: Tensor, questions: list[str]) -> Tensor:
    """(Q, n, d) candidate states for questions about one image (1, C, 16, 16)."""
    processor = context.processor
    ids = [processor.question_ids(question) for question in questions]
    batch = text_batch(processor, ids, [processor.group] * len(ids), [0] * len(ids), 1)
    content = torch.ones(1, 2)  # says where the image ends, which nothing but the heads reads
    output = context.model(**batch, content=content, segmenter_embedding=features, locate=False)
    states: Tensor = output.states.float()
    return states.clone()


# ---- states --------------------------------------------------------------------------------------


def _directions(context: Context, states: Tensor) -> Tensor:
    """(Q, n, d) -> (Q, D) of length one, what the known categories have in common taken away."""
    common = context.states[: context.known].mean(dim=0)
    return F.normalize((states - common).flatten(1), dim=1)


def _joined(context: Context, asked: list[tuple[Tensor, list[int]]]) -> Emitted:
    states = torch.cat([states for states, _ in asked])
    labels = torch.tensor([label for _, labels in asked for label in labels])
    return Emitted(_directions(context, states), labels)


def _ahead(directions: Tensor, known: Tensor, new: Tensor) -> Tensor:
    """(Q, m) by how much each new category's score is ahead of all others'."""
    scores = directions @ torch.cat([known, new]).T
    first, second = scores.topk(2, dim=1).values.T
    own = scores[:, len(known) :]
    return own - torch.where(own == first[:, None], second[:, None], first[:, None])


def _lead(ahead: Tensor) -> float:
    return float(ahead.quantile(1 - SURE))


def _with_states(
    categories: Categories, fresh: list[int], new: np.ndarray, leads: dict[str, float]
) -> Categories:
    """The categories, `fresh` ones with their directions (m, D) as states."""
    states = categories.states.copy()
    known = np.delete(states, fresh, axis=0)
    common = known.mean(axis=0)
    length = LENGTH * np.linalg.norm((known - common).reshape(len(known), -1), axis=1).mean()
    states[fresh] = common + length * new.reshape(len(fresh), *common.shape)
    return Categories(categories.names, states, categories.read, {**categories.leads, **leads})


def _measured(found: Categories, context: Context) -> dict[str, float]:
    """On held-out images: of new questions the share named right and sure; of others, sure."""
    asked = list(_answers(context, context.val, context.val_records))
    states = np.concatenate([states.numpy() for states, _ in asked])
    labels = np.array([label for _, part in asked for label in part])
    named, sure, new = found.scores(states).argmax(axis=1), found.sure(states), labels >= 0
    shares = {"named": (named == labels)[new], "sure": sure[new], "wrongly_sure": sure[~new]}
    return {name: float(values.mean()) for name, values in shares.items() if len(values)}
