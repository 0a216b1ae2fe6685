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

from ..model import MediSeeOutput
from ..model.losses import box_losses, mask_losses, similarity_losses, text_loss
from ..model.modeling import pad_right
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
        for record in context.train_records:
            self.by_image[context.train.row[record.image]].append(record)
        self.images = sorted(self.by_image)
        sizes = np.array([len(self.by_image[i]) for i in self.images], float)
        self.weights = sizes / sizes.sum()
        self.number = {label: i for i, label in enumerate(context.train.labels)}

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
        output = self.context.model(
            **batch,
            content=data.content[images],
            segmenter_embedding=data.pooled[images, self._views(len(images), random)].float(),
            locate=False,
        )
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
        joint = self.stage.task == "joint"
        batch = self._batch(images, chosen, explain)
        truth = self._truth(data, images, chosen)
        embedding = (
            torch.stack([data.features(i, view) for i, view in zip(images, views, strict=True)])
            if joint
            else data.pooled[images, views].float()
        )
        prompts = None
        if joint and len(truth.boxes):
            start, end = self.stage.true_boxes
            share = start + (end - start) * progress
            prompts = jitter(truth.boxes, random) if random.random() < share else None
        output = self.context.model(
            **batch,
            content=data.content[images],
            segmenter_embedding=embedding,
            prompt_boxes=prompts,
            locate=joint or not self.stage.weights.keys().isdisjoint(("l1", "similarity_js")),
            decode=joint,
        )
        targets = batch["labels"][:, 1:][batch["labels"][:, 1:] != -100]
        losses = {"text": text_loss(output.logits, targets)}
        losses["decision"] = text_loss(*self._first(batch["labels"], output.logits, targets))
        if "another" in self.stage.weights and len(truth.labels):
            places = self._after_groups(batch["labels"], chosen)
            losses["another"] = text_loss(output.logits[places], targets[places])
        if "scene" in self.stage.weights:
            present = [[self.number[x] for x in data.images[i].labels] for i in images]
            losses["scene"] = scene_loss(output.image_states, present, self.context.states)
        if len(truth.boxes):
            losses |= state_losses(output.states, truth.labels, self.context.states)
            if "l1" in self.stage.weights:
                losses |= box_losses(output.located.boxes, truth.boxes)
        if joint and len(truth.boxes):
            masks = torch.stack([data.mask(row, [label]) for row, label in truth.places])
            losses |= mask_losses(output.located.mask_logits, masks)
        if "similarity_js" in self.stage.weights and len(truth.boxes):
            reference = self._reference_maps(images, truth, embedding)
            losses |= similarity_losses(output.located.similarity, reference)
        return losses

    @torch.no_grad()
    def _reference_maps(self, images: list[int], truth: _Truth, embedding: Tensor) -> Tensor:
        """(T, N) similarity maps of the bare labels, which need no reasoning (section 3.4)."""
        processor, labels = self.context.processor, self.context.train.labels
        asked = [processor.question_ids(labels[number]) for number in truth.labels.tolist()]
        places = [images.index(row) for row, _ in truth.places]
        answered = [processor.group] * len(asked)
        output = self.context.model(
            **text_batch(processor, asked, answered, places, len(images)),
            content=self.context.train.content[images],
            segmenter_embedding=embedding,
            decode=False,
        )
        return output.located.similarity

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
        return text_batch(processor, asked, answered, places, len(images))

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
        stacked = torch.stack(boxes) if boxes else torch.zeros(0, 4)
        return _Truth(stacked, torch.tensor(labels, dtype=torch.long), places)

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
        )

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """On reserved wordings: category by nearest state, decision, boxes from own states."""
        sums: dict[str, list[float]] = defaultdict(list)
        for images, chosen in self._validation_batches():
            batch = self._batch(images, chosen, explain=False)
            truth = self._truth(self.context.val, images, chosen)
            content = self.context.val.content[images]
            embedding = self.context.val.pooled[images, 0].float()
            model = self.context.model
            output = model(**batch, content=content, segmenter_embedding=embedding, locate=False)
            if len(output.states):
                image = batch["image_index"][output.target_question]
                output.located = model.locate(
                    self.context.settle(output.states),
                    embedding[image],
                    output.image_states[image],
                    content[image],
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
        openings = torch.tensor(self.context.processor.openings)
        decided = openings[logits[:, openings].argmax(dim=1)]
        for (_, record), right in zip(chosen, decided == wanted, strict=True):
            sums["refused" if record.kind == "absent" else "answered"].append(float(right))
        places = self._after_groups(batch["labels"], chosen)
        sums["counted"] += self._more_told_right(output.logits, targets, places)
        if output.located is None or output.target_question is None:
            return
        found = category_scores(output.states, self.context.states).argmax(dim=1)
        overlap = paired_iou(output.located.boxes, truth.boxes)
        for place, question in enumerate(output.target_question.tolist()):
            kind = chosen[question][1].kind
            sums[f"named_{kind}"].append(float(found[place] == truth.labels[place]))
            sums[f"iou_{kind}"].append(float(overlap[place]))

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
) -> dict[str, Tensor]:
    """The text side of `MediSeeModel.forward`: token ids of questions and of their answers.

    Args:
        places: of each question the place, in the batch, of the image that it is about.
        images: how many images the batch has.
    """
    rows = [question + answer for question, answer in zip(asked, answered, strict=True)]
    ids, mask = pad_right(rows, "cpu")
    labels = ids.masked_fill(mask == 0, -100)
    for row, question in enumerate(asked):
        labels[row, : len(question)] = -100
    return {
        "prefix_ids": torch.tensor([processor.prefix_ids] * images),
        "input_ids": ids,
        "attention_mask": mask,
        "image_index": torch.tensor(places),
        "labels": labels,
    }


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
