"""From image and question to arrays, and from raw outputs to an `Answer` (numpy, Pillow).

Both runtimes share this file, so it knows neither torch nor transformers.

Shape letters: S side of the segmenter's input, h and w rows and columns of the image within it,
H and W of the original image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from .boxes import box_iou, cxcywh_to_xyxy, mask_to_box
from .errors import ModelError
from .phrases import Phrasebook
from .structures import Finding, RefusalReason

SEG_TOKEN = "[SEG]"
Box = tuple[float, float, float, float]
IMAGENET_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
IMAGENET_STD = np.array([58.395, 57.12, 57.375], np.float32)


@dataclass(frozen=True)
class SegmenterInput:
    """One image as the segmenter wants it.

    Attributes:
        pixels: (3, S, S) float32, normalised; zeros right and below where padded.
        content: (h, w), the part of the S x S square which the image fills.
        original: (H, W) of the original image.
    """

    pixels: np.ndarray
    content: tuple[int, int]
    original: tuple[int, int]

    @property
    def content_fraction(self) -> tuple[float, float]:
        """(width, height) of the content as a fraction of the square."""
        side = self.pixels.shape[-1]
        return self.content[1] / side, self.content[0] / side


def segmenter_input(
    display: np.ndarray, size: int, normalisation: str = "minmax", pad: bool = True
) -> SegmenterInput:
    """Resizes, normalises and pads one image.

    `minmax` with padding is LiteMedSAM's official recipe (longest side to S by area, each image to
    0..1 by its own minimum and maximum, zeros right and below); without padding, MedSAM's.
    `imagenet` is SAM's (antialiased bilinear to S, mean and std, then zeros).

    Args:
        display: (H, W, 3) uint8.
        size: S.
    """
    height, width = display.shape[:2]
    content = (size, size) if not pad else fit_longest_side(height, width, size)
    if normalisation == "minmax":
        resized = resize_area(display, content).astype(np.float32)
        low, high = resized.min(), resized.max()
        normalised = (resized - low) / max(float(high - low), 1e-8)
    else:
        normalised = (_resize_bilinear(display, content) - IMAGENET_MEAN) / IMAGENET_STD
    pixels = np.zeros((3, size, size), np.float32)
    pixels[:, : content[0], : content[1]] = normalised.transpose(2, 0, 1)
    return SegmenterInput(pixels, content, (height, width))


def fit_longest_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(h, w) after scaling the longer side to `size`; neither falls below one pixel."""
    scale = size / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_area(display: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W, C) uint8 -> (h, w, C) uint8: means over equal areas, bilinear where it enlarges.

    Equals OpenCV's INTER_AREA; Pillow's box filter counts each pixel wholly or not at all.
    """
    if shape[0] > display.shape[0] or shape[1] > display.shape[1]:
        return _resize_bilinear(display, shape)
    rows = _means(display, shape[0])
    return np.rint(_means(rows.swapaxes(0, 1), shape[1]).swapaxes(0, 1)).astype(np.uint8)


def _means(values: np.ndarray, count: int) -> np.ndarray:
    """(N, ...) -> (count, ...): means over equal parts of the first axis, cut within elements."""
    edges = np.arange(count) * (len(values) / count)
    first = edges.astype(int)
    before = (edges - first)[:, None, None] * values[first]  # belongs to the part before
    after = np.append(before[1:], np.zeros_like(before[:1]), axis=0)
    sums = np.add.reduceat(values, first, axis=0, dtype=np.float64)
    return (sums - before + after) * (count / len(values))


def _resize_bilinear(display: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    size = (shape[1], shape[0])
    return np.asarray(Image.fromarray(display).resize(size, Image.Resampling.BILINEAR))


CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def clip_input(display: np.ndarray, size: int) -> np.ndarray:
    """(3, size, size) float32: CLIP's shortest edge to `size`, central square, its mean and std."""
    height, width = fit_shortest_side(display.shape[0], display.shape[1], size)
    resized = Image.fromarray(display).resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    square = np.asarray(resized.crop((left, top, left + size, top + size)), np.float32)
    return ((square / 255 - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1)


def fit_shortest_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(h, w) after scaling the shorter side to `size`; the longer one is rounded down."""
    shortest = min(height, width)
    return size * height // shortest, size * width // shortest


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

REFUSAL_OPENINGS = {
    RefusalReason.NOT_IN_VIEW: "Nothing",
    RefusalReason.WRONG_MODALITY: "This",
    RefusalReason.NOT_MEDICAL: "That",
    RefusalReason.UNCLEAR: "Please",
}
"""The first word of a refusal tells its reason, so that one position's logits decide."""


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


def restore_mask(
    logits: np.ndarray, size: int, content: tuple[int, int], original: tuple[int, int]
) -> np.ndarray:
    """(h, w) mask logits on the padded square -> (H, W) float32 logits on the original grid.

    Args:
        size: side S of the segmenter's input.
        content: (height, width) of the image within the square.
        original: (H, W).
    """
    if logits.shape[0] != size:
        logits = _resize_float(logits, (size, size))
    return _resize_float(logits[: content[0], : content[1]], original)


def _resize_float(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


# ---- from raw outputs to an answer ---------------------------------------------------------------


@dataclass(frozen=True)
class RawAnswer:
    """What a runtime says of one question, before it is put into words and pixels.

    Attributes:
        decision: (5,) probabilities: it is here, then the reasons of `REFUSAL_OPENINGS`.
        presence: for each target, the probability with which its group was opened.
        boxes: (T, 4) cxcywh in 0..1 of the image; None without a box decoder.
        mask_logits: (T, h, w) on the padded square.
        quality: (T,) the mask decoder's own estimate of IoU.
        similarity: (T, N) over the image tokens.
        handle: what the runtime needs to explain.
        labels: category of each target, where the model tells it from its states.
    """

    decision: np.ndarray
    presence: list[float]
    handle: Any
    boxes: np.ndarray | None = None
    mask_logits: np.ndarray | None = None
    quality: np.ndarray | None = None
    similarity: np.ndarray | None = None
    labels: Sequence[str] = ()

    def refusal(self) -> RefusalReason | None:
        """The reason, where no target was accepted."""
        if self.mask_logits is not None:
            return None
        return list(REFUSAL_OPENINGS)[int(self.decision[1:].argmax())]


def to_findings(
    raw: RawAnswer,
    image: SegmenterInput,
    calibrate: Callable[[float], float],
    mask_boxes: bool = False,
) -> list[Finding]:
    """Masks, boxes and scores on the original grid."""
    drawn = list(_drawn(raw, image))
    labels: list[str | None] = list(raw.labels) or [None] * len(drawn)
    findings = []
    for (mask, box, score, similarity), label in zip(drawn, labels, strict=True):
        shown = (mask_to_box(mask) or box) if mask_boxes else box
        chance = min(max(calibrate(score), 0.0), 1.0)
        findings.append(Finding(mask, shown, chance, similarity, label))
    return findings


def raw_scores(raw: RawAnswer, image: SegmenterInput) -> list[tuple[np.ndarray, float]]:
    """Mask (H, W) bool and uncalibrated score of each target."""
    return [(mask, score) for mask, _, score, _ in _drawn(raw, image)]


def _drawn(
    raw: RawAnswer, image: SegmenterInput
) -> Iterator[tuple[np.ndarray, Box, float, np.ndarray]]:
    """Mask, box, raw score and similarity grid of each target."""
    if raw.mask_logits is None or raw.quality is None or raw.similarity is None:
        return
    for row in range(len(raw.mask_logits)):
        side = image.pixels.shape[-1]
        logits = restore_mask(raw.mask_logits[row], side, image.content, image.original)
        tight = mask_to_box(logits > 0)
        box = _box(raw, row, image, tight)
        agreement = 0.0 if tight is None else float(box_iou([box], [tight])[0, 0])
        score = raw_score(logits, agreement, float(raw.quality[row]), raw.presence[row])
        cells = round(raw.similarity.shape[1] ** 0.5)
        yield logits > 0, box, score, raw.similarity[row].reshape(cells, cells)


def _box(raw: RawAnswer, row: int, image: SegmenterInput, tight: Box | None) -> Box:
    """The box decoder's box in pixels; without one, the smallest box around the mask."""
    if raw.boxes is None:
        return tight or (0.0, 0.0, 0.0, 0.0)
    height, width = image.original
    x1, y1, x2, y2 = cxcywh_to_xyxy(raw.boxes[row], height, width)
    limits = ((x1, width), (y1, height), (x2, width), (y2, height))
    left, top, right, bottom = (float(min(max(value, 0), limit)) for value, limit in limits)
    return left, top, right, bottom


def raw_score(logits: np.ndarray, agreement: float, quality: float, presence: float) -> float:
    """How sure the answer is, 0..1, before calibration: the mean of four signs.

    The mask's stability (IoU of the masks at logits +1 and -1, as SAM has it), how well it fills
    its box, the mask decoder's estimate of IoU, and the probability that the target is here.
    """
    larger = float((logits > -1).sum())
    stability = float((logits > 1).sum()) / larger if larger else 0.0
    return float(np.mean([stability, agreement, np.clip(quality, 0, 1), presence]))
