"""What one step of `language` and `joint` does: questions and answers about a few images.

Shape letters: T targets, n candidates, d width of the language model, k categories, B images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError
from ..model import MediSeeOutput
from ..model.losses import box_losses, mask_losses, similarity_losses, text_loss
from ..model.phases import pad_right
from ..processing import MediSeeProcessor
from ..structures import QARecord
from .context import Context, Losses
from .recipe import Stage
from .targets import Targets, jitter, paired_iou

SHORT = 110
"""Longest question, in characters, of a batch without explanations."""


class Language:
    """The MLLM learns to read: states of the right category, refusals, explanations.

    As `joint`, masks and boxes are trained too, end to end, through the emitted states.
    """

    def __init__(self, context: Context, stage: Stage) -> None:
        self.context, self.stage = context, stage
        self.by_image: dict[int, list[QARecord]] = defaultdict(list)
        for record in mixed(context.train_records, stage.templates, context.seed):
            self.by_image[context.train.row[record.image]].append(record)
        self.images = sorted(self.by_image)
        sizes = np.array([len(self.by_image[i]) for i in self.images], float)
        self.weights = sizes / sizes.sum()
        self.number = {label: i for i, label in enumerate(context.train.labels)}
        if not self.images:
            raise DataError(f"stage {stage.name}: there is no question to train on")

    def losses(self, step: int, progress: float) -> Losses:
        random = np.random.default_rng([self.context.seed, step, 11])
        images, chosen, explain = self._draw(random)
        views = self._views(len(images), random)
        return self._losses(self.context.train, images, views, chosen, explain, progress, random)

    def emitted(self, step: int) -> tuple[Tensor, Tensor]:
        """Candidate states (T, n, d) that the MLLM emits on a training batch, and the labels."""
        random = np.random.default_rng([self.context.seed, step, 12])
        images, chosen, _ = self._draw(random)
        data = self.context.train
        batch = self._batch(images, chosen, explain=False)
        shown = self.context.shown(data, images, self._views(len(images), random), whole=False)
        output = self.context.model(**batch, **shown, locate=False)
        return output.states, self._truth(data, images, chosen).labels

    def _views(self, count: int, random: np.random.Generator) -> list[int]:
        return random.integers(self.context.train.views, size=count).tolist()

    def _draw(
        self, random: np.random.Generator
    ) -> tuple[list[int], list[tuple[int, QARecord]], bool]:
        """Images of a batch, its questions (place of the image, record), whether it explains."""
        # Explained answers and conversations are long; they come together, for every row of a
        # batch is as long as its longest.
        explain = bool(random.random() < self.stage.explain)
        count = min(self.stage.batch, len(self.images))
        rows = random.choice(len(self.images), count, p=self.weights, replace=False)
        images = [self.images[row] for row in rows]
        chosen = [
            (place, record)
            for place, image in enumerate(images)
            for record in self._pick(image, explain, random)
        ]
        return images, chosen, explain

    def _pick(self, image: int, explain: bool, random: np.random.Generator) -> list[QARecord]:
        records = self.by_image[image]
        order = [records[k] for k in random.permutation(len(records))]
        if not explain:
            order = [r for r in order if not r.history and len(r.question) <= SHORT] or order
        return order[: self.stage.questions]

    def _losses(
        self,
        data: Targets,
        images: list[int],
        views: list[int],
        chosen: list[tuple[int, QARecord]],
        explain: bool,
        progress: float,
        random: np.random.Generator,
    ) -> Losses:
        joint, weights = self.stage.task == "joint", self.stage.weights
        batch = self._batch(images, chosen, explain)
        truth = self._truth(data, images, chosen)
        shown = self.context.shown(data, images, views, whole=joint)
        prompts = None
        if joint and len(truth.boxes):
            start, end = self.stage.true_boxes
            share = start + (end - start) * progress
            prompts = jitter(truth.boxes, random) if random.random() < share else None
        output = self.context.model(
            **batch,
            **shown,
            prompt_boxes=prompts,
            locate=joint or not weights.keys().isdisjoint(("l1", "similarity_js")),
            decode=joint,
        )
        targets = batch["labels"][:, 1:][batch["labels"][:, 1:] != -100]
        losses = {"text": text_loss(output.logits, targets)}
        if "decision" in weights or self.context.emits_states:
            losses["decision"] = text_loss(*self._first(batch["labels"], output.logits, targets))
        if "another" in weights and len(truth.labels):
            places = self._after_groups(batch["labels"], chosen)
            losses["another"] = text_loss(output.logits[places], targets[places])
        if "scene" in weights:
            present = [[self.number[x] for x in data.images[i].labels] for i in images]
            losses["scene"] = scene_loss(output.image_states, present, self.context.states)
        if not len(truth.boxes):
            return losses
        if self.context.emits_states:
            losses |= state_losses(output.states, truth.labels, self.context.states)
        if "l1" in weights:
            losses |= box_losses(output.located.boxes, truth.boxes)
        if joint:
            masks = torch.stack([data.mask(row, [label]) for row, label in truth.places])
            losses |= mask_losses(output.located.mask_logits, masks.to(self.context.device))
        if "similarity_js" in weights:
            reference = self._reference_maps(images, truth, shown)
            losses |= similarity_losses(output.located.similarity, reference)
        return losses

    @torch.no_grad()
    def _reference_maps(self, images: list[int], truth: _Truth, shown: dict[str, Tensor]) -> Tensor:
        """(T, N) similarity maps of the bare labels, which need no reasoning (section 3.4)."""
        processor, labels = self.context.processor, self.context.train.labels
        asked = [processor.question_ids(labels[number]) for number in truth.labels.tolist()]
        places = [images.index(row) for row, _ in truth.places]
        answered = [processor.group] * len(asked)
        batch = text_batch(processor, asked, answered, places, len(images), self.context.device)
        return self.context.model(**batch, **shown, decode=False).located.similarity

    def _batch(
        self, images: list[int], chosen: list[tuple[int, QARecord]], explain: bool
    ) -> dict[str, Tensor]:
        processor = self.context.processor
        asked, answered = [], []
        for _, record in chosen:
            history = [(turn.question, turn.answer) for turn in record.history]
            asked.append(processor.question_ids(record.question, history))
            answer = processor.answer_ids(record.answer, len(record.targets))
            if not explain and record.targets:
                # The end of the groups is supervised by one word more: nothing else follows.
                groups = len(processor.group) + len(processor.more) * (len(record.targets) - 1)
                answer = answer[: groups + 1]
            answered.append(answer)
        places = [place for place, _ in chosen]
        return text_batch(processor, asked, answered, places, len(images), self.context.device)

    def _truth(
        self, data: Targets, images: list[int], chosen: list[tuple[int, QARecord]]
    ) -> _Truth:
        boxes, labels, places = [], [], []
        for place, record in chosen:
            row = images[place]
            height, width = data.originals[row]
            for target in record.targets:
                x1, y1, x2, y2 = target.box
                box = torch.tensor([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height,
                                    (x2 - x1) / width, (y2 - y1) / height])  # fmt: skip
                boxes.append(box)
                labels.append(self.number[target.label])
                places.append((row, target.label))
        stacked, device = torch.stack(boxes) if boxes else torch.zeros(0, 4), self.context.device
        numbers = torch.tensor(labels, dtype=torch.long, device=device)
        return _Truth(stacked.to(device), numbers, places)

    @staticmethod
    def _first(labels: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and ids of the first word of each answer: here, or why not."""
        counts = (labels[:, 1:] != -100).sum(dim=1)
        starts = counts.cumsum(0) - counts
        return logits[starts], targets[starts]

    def _after_groups(self, labels: Tensor, chosen: list[tuple[int, QARecord]]) -> Tensor:
        """Places, among the supervised tokens, of the word after each group: "and another" or not.

        One word in ten, it would drown among the others; yet it decides how many targets there are.
        """
        processor = self.context.processor
        counts = (labels[:, 1:] != -100).sum(dim=1)
        starts = (counts.cumsum(0) - counts).tolist()
        first, step = len(processor.group), len(processor.more)
        return torch.tensor(
            [
                start + first + step * number
                for start, (_, record) in zip(starts, chosen, strict=True)
                for number in range(len(record.targets))
            ],
            dtype=torch.long,
            device=labels.device,
        )

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """On reserved wordings: category by nearest state, decision, boxes from own states."""
        sums: dict[str, list[float]] = defaultdict(list)
        for images, chosen in self._validation_batches():
            batch = self._batch(images, chosen, explain=False)
            truth = self._truth(self.context.val, images, chosen)
            model, views = self.context.model, [0] * len(images)
            shown = self.context.shown(self.context.val, images, views, whole=False)
            output = model(**batch, **shown, locate=False)
            if len(output.states):
                image = batch["image_index"][output.target_question]
                output.located = model.locate(
                    self.context.settle(output.states),
                    shown["segmenter_embedding"][image],
                    output.image_states[image],
                    shown["content"][image],
                    decode=False,
                )
            self._score(sums, batch, chosen, truth, output)
        return {name: float(np.mean(values)) for name, values in sums.items() if values}

    def _validation_batches(self) -> Iterator[tuple[list[int], list[tuple[int, QARecord]]]]:
        grouped: dict[int, list[QARecord]] = defaultdict(list)
        for record in self.context.val_records:
            grouped[self.context.val.row[record.image]].append(record)
        rows = sorted(grouped)
        for start in range(0, len(rows), 8):
            images = rows[start : start + 8]
            yield images, [(p, r) for p, i in enumerate(images) for r in grouped[i]]

    def _score(
        self,
        sums: dict[str, list[float]],
        batch: dict[str, Tensor],
        chosen: list[tuple[int, QARecord]],
        truth: _Truth,
        output: MediSeeOutput,
    ) -> None:
        targets = batch["labels"][:, 1:][batch["labels"][:, 1:] != -100]
        logits, wanted = self._first(batch["labels"], output.logits, targets)
        openings = torch.tensor(self.context.processor.openings, device=logits.device)
        decided = openings[logits[:, openings].argmax(dim=1)]
        for (_, record), right in zip(chosen, decided == wanted, strict=True):
            sums["refused" if record.kind == "absent" else "answered"].append(float(right))
        places = self._after_groups(batch["labels"], chosen)
        sums["counted"] += self._more_told_right(output.logits, targets, places)
        if output.located is None or output.target_question is None:
            return
        kinds = [chosen[question][1].kind for question in output.target_question.tolist()]
        if self.context.emits_states:
            found = category_scores(output.states, self.context.states).argmax(dim=1)
            for kind, right in zip(kinds, (found == truth.labels).tolist(), strict=True):
                sums[f"named_{kind}"].append(float(right))
        if output.located.boxes is not None:
            overlap = paired_iou(output.located.boxes, truth.boxes)
            for kind, value in zip(kinds, overlap.tolist(), strict=True):
                sums[f"iou_{kind}"].append(value)

    def _more_told_right(self, logits: Tensor, targets: Tensor, places: Tensor) -> list[float]:
        """After each group: whether "and another" was told right, 1 or 0."""
        more = self.context.processor.more[0]
        told = logits[places].softmax(dim=1)[:, more] >= 0.5
        return (told == (targets[places] == more)).float().tolist()


@dataclass(frozen=True)
class _Truth:
    boxes: Tensor
    labels: Tensor
    places: list[tuple[int, str]]


def text_batch(
    processor: MediSeeProcessor,
    asked: Sequence[list[int]],
    answered: Sequence[list[int]],
    places: Sequence[int],
    images: int,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """The text side of `MediSeeModel.forward`: token ids of questions and of their answers.

    Args:
        places: of each question the place, in the batch, of the image that it is about.
        images: how many images the batch has.
    """
    rows = [question + answer for question, answer in zip(asked, answered, strict=True)]
    ids, mask = pad_right(rows, device)
    labels = ids.masked_fill(mask == 0, -100)
    for row, question in enumerate(asked):
        labels[row, : len(question)] = -100
    return {
        "prefix_ids": torch.tensor([processor.prefix_ids] * images, device=device),
        "input_ids": ids,
        "attention_mask": mask,
        "image_index": torch.tensor(places, device=device),
        "labels": labels,
    }


def mixed(records: Sequence[QARecord], templates: float | None, seed: int) -> list[QARecord]:
    """As many records as can be had with this share of templates (questions that name the target).

    None: all of them. Where one kind is missing, the other alone.
    """
    if templates is None:
        return list(records)
    named = [record for record in records if record.kind == "referring"]
    others = [record for record in records if record.kind != "referring"]
    if not 0 < templates < 1:
        return named if templates else others
    total = min(len(named) / templates, len(others) / (1 - templates)) if named and others else 0
    random = np.random.default_rng([seed, 17])
    parts = ((named, templates), (others, 1 - templates))
    return [
        part[place]
        for part, share in parts
        for place in sorted(random.permutation(len(part))[: round(total * share) or None])
    ]


def state_losses(states: Tensor, labels: Tensor, categories: Tensor) -> Losses:
    """How far emitted candidate states (T, n, d) are from their category's: `state`, `category`.

    `state` is the mean squared error; `category` tells the right category from all others by the
    cosine of what is left when the common part is taken away (temperature 0.07).
    """
    wanted = categories[labels]
    scores = category_scores(states, categories) / 0.07
    return {
        "state": F.mse_loss(states.float(), wanted),
        "category": F.cross_entropy(scores, labels),
    }


def category_scores(states: Tensor, categories: Tensor) -> Tensor:
    """(T, k) cosine between states (T, n, d) and each category's (k, n, d), common part removed."""
    common = categories.mean(dim=0, keepdim=True)
    emitted = F.normalize((states.float() - common).flatten(1), dim=1)
    return emitted @ F.normalize((categories - common).flatten(1), dim=1).T


def scene_loss(image_states: Tensor, present: list[list[int]], categories: Tensor) -> Tensor:
    """Cross-entropy between what the image tokens say is in view and the labels (B lists).

    Image tokens precede the question and see the image alone. Taught to name what is there, they
    tell the candidates which few categories come into question at all.
    """
    mean = F.normalize(image_states.float().mean(dim=1), dim=1)
    own = F.normalize((categories - categories.mean(dim=0, keepdim=True))[:, -1], dim=1)
    chances = (mean @ own.T / 0.07).log_softmax(dim=1)
    rows = [row[labels].mean() for row, labels in zip(chances, present, strict=True)]
    return -torch.stack(rows).mean()
