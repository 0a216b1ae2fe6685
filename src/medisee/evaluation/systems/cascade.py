"""Cascades: a multimodal language model names the target, a text-prompted segmenter finds it.

The model is asked once for each question, with the image and its modality, by `PROMPT`; its answer
without punctuation is the segmenter's text, and "none" is a refusal. The authors' own prompt is not
known; this one is a setting (`--set prompt=...`) and printed with every result.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from medisee.evaluation.systems import Setup
from medisee.evaluation.systems.common import Found, OneByOne, TextSegmenter
from medisee.structures import MedicalImage

__all__ = ["PROMPT", "compose"]

PROMPT = (
    "The image is a {modality}. Someone asks: {question} Which single structure, lesion, cell or "
    "device in the image do they mean? Answer with its standard medical name in at most five "
    "words, or 'none'."
)

Namer = Callable[[MedicalImage, str], str]
"""Image and whole prompt -> the model's answer."""


def janus_biomedparse(setup: Setup, namer: str, command: str, prompt: str = PROMPT) -> OneByOne:
    """Janus-Pro + BiomedParse."""
    return compose(setup, "Janus-Pro + BiomedParse", _chat(setup, namer), _worker(command), prompt)


def llava_biomedparse(setup: Setup, namer: str, command: str, prompt: str = PROMPT) -> OneByOne:
    """LLaVA-Med + BiomedParse."""
    return compose(setup, "LLaVA-Med + BiomedParse", _chat(setup, namer), _worker(command), prompt)


def service_biomedparse(
    setup: Setup, endpoint: str, namer: str, command: str, prompt: str = PROMPT
) -> OneByOne:
    """A service + BiomedParse."""
    name = f"{namer} + BiomedParse"
    return compose(setup, name, _service(endpoint, namer), _worker(command), prompt)


def janus_imis(
    setup: Setup, namer: str, segmenter: str, tokenizer: str, prompt: str = PROMPT
) -> OneByOne:
    """Janus-Pro + IMIS-Net."""
    found = _imis(setup, segmenter, tokenizer)
    return compose(setup, "Janus-Pro + IMIS-Net", _chat(setup, namer), found, prompt)


def llava_imis(
    setup: Setup, namer: str, segmenter: str, tokenizer: str, prompt: str = PROMPT
) -> OneByOne:
    """LLaVA-Med + IMIS-Net."""
    found = _imis(setup, segmenter, tokenizer)
    return compose(setup, "LLaVA-Med + IMIS-Net", _chat(setup, namer), found, prompt)


def service_imis(
    setup: Setup, endpoint: str, namer: str, segmenter: str, tokenizer: str, prompt: str = PROMPT
) -> OneByOne:
    """A service + IMIS-Net."""
    found = _imis(setup, segmenter, tokenizer)
    return compose(setup, f"{namer} + IMIS-Net", _service(endpoint, namer), found, prompt)


def llava_unimed(setup: Setup, namer: str, command: str, prompt: str = PROMPT) -> OneByOne:
    """LLaVA-Med + Uni-Med, which gives boxes alone."""
    return compose(setup, "LLaVA-Med + Uni-Med", _chat(setup, namer), _worker(command), prompt)


def compose(
    setup: Setup, name: str, namer: Namer, segmenter: TextSegmenter, prompt: str = PROMPT
) -> OneByOne:
    """Any namer before any text-prompted segmenter."""
    modalities = setup.modalities

    def answer(image: MedicalImage, question: str) -> Found:
        modality = modalities.get(image.source) or "medical image"
        phrase = cleaned(namer(image, prompt.format(modality=modality, question=question)))
        if phrase.lower() in ("", "none"):
            return Found(text=phrase)
        found = segmenter(image, phrase)
        return Found(found.mask, found.box, found.score, text=phrase)

    return OneByOne(name, answer, {"prompt": prompt})


def cleaned(answer: str) -> str:
    """The first line that says something, without punctuation at its ends or an article."""
    lines = [line.strip(" \t.,;:!?'\"*()[]") for line in answer.splitlines()]
    first = next((line for line in lines if line), "")
    return re.sub(r"^(the|an?)\s+", "", first, flags=re.IGNORECASE)


def _chat(setup: Setup, folder: str) -> Namer:
    from medisee.evaluation.systems.namers import ChatNamer

    return ChatNamer.load(folder, setup.device)


def _service(endpoint: str, model: str) -> Namer:
    from medisee.evaluation.systems.namers import ServiceNamer

    return ServiceNamer(endpoint, model)


def _worker(command: str) -> TextSegmenter:
    from medisee.evaluation.systems.external import Worker

    return Worker(command)


def _imis(setup: Setup, weights: str, tokenizer: str) -> TextSegmenter:
    from pathlib import Path

    from medisee.evaluation.systems.imis_net import load

    return load(Path(weights), Path(tokenizer), setup.device)
