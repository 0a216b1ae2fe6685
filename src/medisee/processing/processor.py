"""Tokens, templates and image inputs of one model.

Shape letters: S side of the segmenter's input, H and W of the image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..errors import ModelError
from ..phrases import Phrasebook
from .answers import REFUSAL_OPENINGS
from .pixels import SegmenterInput, clip_input, segmenter_input

SEG_TOKEN = "[SEG]"


@dataclass(frozen=True)
class PromptTemplate:
    """How a conversation is written for one language model.

    Special tokens stand in these strings by name; whatever a person types is encoded apart from
    them, and so never becomes one.

    Attributes:
        prefix: what precedes the question; `<image>` stands for all image tokens.
        question: one question, `{}` being its text, up to where the answer begins.
        end: what ends an answer.
        next_round: what follows an answer when another question comes.
    """

    prefix: str
    question: str
    end: str
    next_round: str


@dataclass(frozen=True)
class ProcessorConfig:
    """All that turns an image and a question into arrays; `processor_config.json`.

    Attributes:
        template: the conversation's format.
        candidates: candidate tokens in router order.
        image_token: the image placeholder.
        image_seq_length: image tokens per image.
        segmenter_size, normalisation, pad: see `segmenter_input`.
        clip_size: side of the MLLM's own image input; None where it shares the encoder.
        mask_boxes: a finding's box is the smallest one around its mask; else the box decoder's,
            which prompted the mask.
    """

    template: PromptTemplate
    candidates: tuple[str, ...]
    image_token: str
    image_seq_length: int
    segmenter_size: int
    normalisation: str
    pad: bool
    clip_size: int | None = None
    mask_boxes: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ProcessorConfig:
        template = PromptTemplate(**values["template"])
        return cls(**{**values, "template": template, "candidates": tuple(values["candidates"])})


MORE = " Also"
TOKENS_PER_TARGET = 96
"""An explanation's longest sentence."""


def answer_opening(candidates: tuple[str, ...]) -> str:
    """ "It is [SEG] and [BBOX]." for two candidates; the segmentation token is named first."""
    names = [SEG_TOKEN] + [name for name in candidates if name != SEG_TOKEN]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"It is {listed}."


class MediSeeProcessor:
    """Tokens, templates and image inputs of one model; `from_pretrained` / `save_pretrained`.

    Raises:
        ValueError: a tokenizer with which text could become a token of ours, or which cannot tell
            the answers' first words apart; a phrasebook without a refusal for each reason.
    """

    def __init__(
        self, config: ProcessorConfig, tokenizer: Tokenizer, phrases: Phrasebook | None = None
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        # What is typed stays text, even where it spells a special token.
        tokenizer.encode_special_tokens = True
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token.content: index for index, token in added.items()}
        if plain := [token.content for token in added.values() if not token.special]:
            raise ValueError(f"added tokens that are not special would be read: {plain}")
        names = sorted(self._special, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, names)) + ")")
        opening = answer_opening(config.candidates)
        self.group = self.encode_template(opening)
        self._more = opening.replace("It is", MORE, 1)
        self.more = self.encode_template(self._more.lstrip() if self._puts_space() else self._more)
        self.openings = [self.group[0]] + [
            self.encode_text(word)[0] for word in REFUSAL_OPENINGS.values()
        ]
        if len(set(self.openings)) < len(self.openings):
            raise ValueError("in this vocabulary, first words of different answers begin alike")
        self.prefix_ids = self._prefix()
        self.phrases = phrases
        if phrases is not None:
            phrases.index(self.encode_text)
            if set(self.openings[1:]) - set(phrases.allowed([], [])):
                raise ValueError("the phrasebook has no refusal for some first word")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MediSeeProcessor:
        """Reads `processor_config.json` and `tokenizer.json` of a model folder.

        Raises:
            ModelError: if either is missing or unreadable.
        """
        folder = Path(folder)
        for name in ("processor_config.json", "tokenizer.json"):
            if not (folder / name).is_file():
                raise ModelError(
                    f"{folder} has no processor ({name} is missing), so it cannot be asked; a "
                    "converted model gets one with medisee convert --tokenizer FOLDER"
                )
        try:
            values = json.loads((folder / "processor_config.json").read_text())
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            phrases = None
            if (folder / "phrases.json").is_file():
                phrases = Phrasebook(**json.loads((folder / "phrases.json").read_text("utf-8")))
            return cls(ProcessorConfig.from_dict(values), tokenizer, phrases)
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(f"{folder} holds no usable MediSee processor ({error})") from error

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self.config), indent=2)
        (folder / "processor_config.json").write_text(text + "\n")
        self.tokenizer.save(str(folder / "tokenizer.json"))
        if self.phrases is not None:
            phrases = {"answers": self.phrases.answers, "refusals": self.phrases.refusals}
            (folder / "phrases.json").write_text(json.dumps(phrases, indent=1), "utf-8")

    # ---- text --------------------------------------------------------------------------------

    @property
    def end_id(self) -> int:
        return self.encode_template(self.config.template.end)[-1]

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text; special tokens in it are encoded as the characters they are."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_template(self, text: str, *typed: str) -> list[int]:
        """Ids of text that we wrote, in which special tokens stand by name.

        Each `{}` takes the next of `typed` after the cut at special tokens, and so never is one.
        """
        ids: list[int] = []
        values = iter(typed)
        for part in filter(None, self._split.split(text)):
            if part in self._special:
                ids.append(self._special[part])
            else:
                ids += self.encode_text(re.sub(r"\{\}", lambda _: next(values), part))
        return ids

    def _puts_space(self) -> bool:
        """Whether the tokenizer itself puts a space before each piece of text (Llama's)."""
        token = self.tokenizer.id_to_token(self.encode_text("a")[0])
        return token is not None and token.startswith("\u2581")

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def question_ids(self, question: str, history: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Ids from after the image up to where the answer begins.

        Args:
            question: what the person asks.
            history: earlier rounds, (question, explanation), oldest first.
        """
        template = self.config.template
        ids: list[int] = []
        for asked, answered in history:
            ids += self.encode_template(template.question, asked)
            ids += self.encode_template("{}" + template.end + template.next_round, answered)
        return ids + self.encode_template(template.question, question)

    def answer_ids(self, explanation: str, targets: int) -> list[int]:
        """Ids of a whole answer: `targets` groups, then the explanation; none: a refusal."""
        opening = answer_opening(self.config.candidates) if targets else ""
        groups = opening + self._more * (targets - 1)
        text = " {}" if groups and explanation else "{}"
        return self.encode_template(groups + text + self.config.template.end, explanation)

    def _prefix(self) -> list[int]:
        image = self._special[self.config.image_token]
        ids: list[int] = []
        for token in self.encode_template(self.config.template.prefix):
            ids += [image] * self.config.image_seq_length if token == image else [token]
        return ids

    # ---- images ------------------------------------------------------------------------------

    def segmenter_input(self, display: np.ndarray) -> SegmenterInput:
        config = self.config
        return segmenter_input(display, config.segmenter_size, config.normalisation, config.pad)

    def mllm_pixels(self, display: np.ndarray) -> np.ndarray | None:
        """The MLLM's own image input (3, s, s); None where it sees through the segmenter."""
        size = self.config.clip_size
        return None if size is None else clip_input(display, size)
