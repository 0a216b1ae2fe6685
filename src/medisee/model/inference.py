"""Runs a `MediSeeModel` for the predictor: arrays in, arrays out, three phases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..categories import Categories, speaking_categories
from ..errors import ModelError
from ..processing import TOKENS_PER_TARGET, MediSeeProcessor, RawAnswer, SegmenterInput
from .modeling import MediSeeModel
from .outputs import EncodedImage, Located, Perceived
from .placement import load_placed
from .tinyvit import TinyViT, fold_batch_norms


class TorchRuntime:
    """The reference runtime."""

    exact_batches = True

    def __init__(
        self,
        model: MediSeeModel,
        processor: MediSeeProcessor,
        categories: Categories | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.categories = categories
        if isinstance(model.segmenter.vision_encoder, TinyViT):
            fold_batch_norms(model.segmenter.vision_encoder)
            model.segmenter.vision_encoder.to(memory_format=torch.channels_last)

    @classmethod
    def load(
        cls,
        folder: Path,
        processor: MediSeeProcessor,
        device: str | None = None,
        precision: str | None = None,
    ) -> TorchRuntime:
        """Loads a model folder to where it fits (see `placement`).

        Raises:
            ModelError: weights that do not fit the configuration, a device that is not there, or
                too little memory.
        """
        with _broken_means_unusable(folder):
            model = load_placed(folder, device, precision)
        return cls(model, processor, speaking_categories(folder, processor.phrases))

    def encode(
        self,
        image: SegmenterInput,
        mllm_pixels: object | None = None,
        embedding: torch.Tensor | None = None,
    ) -> EncodedImage:
        """Phase 1, once per image; with its `embedding` (1, C, E, E) cached, no encoder runs."""
        device = self.model.device
        own = None
        if mllm_pixels is not None:
            own = torch.as_tensor(mllm_pixels, device=device)[None]
        pixels = torch.from_numpy(image.pixels)[None].to(device)
        return self.model.encode_image(
            prefix_ids=torch.tensor([self.processor.prefix_ids], device=device),
            content=torch.tensor([image.content_fraction], device=device),
            segmenter_pixel_values=pixels.contiguous(memory_format=torch.channels_last),
            pixel_values=own,
            segmenter_embedding=embedding,
        )

    def perceive(
        self, image: EncodedImage, questions: list[list[int]], accept: float
    ) -> list[RawAnswer]:
        """Phase 2: every question's decision, boxes and mask logits, in one batch."""
        processor = self.processor
        perceived = self.model.perceive(
            image,
            questions,
            processor.group,
            processor.more,
            processor.openings,
            accept,
            settle=partial(settled, self.categories) if self.categories else None,
            sure=self._sure if self.categories else None,
        )
        return [self._raw(each) for each in perceived]

    def explain(self, raw: RawAnswer, opening: int | None) -> Iterator[int]:
        """Phase 3: token ids of the explanation; of a phrasebook's sentences where there is one."""
        phrases = self.processor.phrases
        allowed = None if phrases is None else partial(phrases.allowed, raw.labels)
        most = TOKENS_PER_TARGET * max(len(raw.presence), 1)
        return self.model.explain(raw.handle, opening, self.processor.end_id, most, allowed)

    def _sure(self, states: torch.Tensor) -> torch.Tensor:
        assert self.categories is not None
        found = self.categories.sure(states.float().cpu().numpy())
        return torch.from_numpy(found).to(states.device)

    def _raw(self, perceived: Perceived) -> RawAnswer:
        located = perceived.targets or Located()
        arrays = {
            name: None if (value := getattr(located, name)) is None else value.float().cpu().numpy()
            for name in ("boxes", "mask_logits", "quality", "similarity")
        }
        labels: list[str] = []
        if self.categories is not None and perceived.states is not None:
            labels = self.categories.nearest(perceived.states.float().cpu().numpy())
        decision = perceived.decision.cpu().numpy()
        return RawAnswer(
            decision, presence=perceived.presence, handle=perceived, labels=labels, **arrays
        )


def settled(categories: Categories, states: torch.Tensor) -> torch.Tensor:
    """Emitted candidate states (T, n, d) as the heads will read them, on the same device."""
    found = categories.settle(states.detach().float().cpu().numpy())
    return torch.from_numpy(found).to(states)


def load_weights(folder: Path) -> MediSeeModel:
    """A model folder's network in fp32, for training and compiling.

    Raises:
        ModelError: configuration or weights that are broken or do not fit each other.
    """
    with _broken_means_unusable(folder):
        return MediSeeModel.from_pretrained(folder)


@contextmanager
def _broken_means_unusable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"the model in {folder} cannot be loaded: {reason}") from error
