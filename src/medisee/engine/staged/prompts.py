"""The prompts, one file for each stage under `engine/prompts`, and the replies that they ask for.

A file has three parts between lines of three dashes: facts (version, usual tokens of a reply for
each thing asked for), who the writer is, and the request with its `$placeholders`. Another text
is another version: the version goes into every record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from string import Template
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = [
    "STAGES",
    "Caption",
    "Description",
    "Descriptions",
    "Prompt",
    "Question",
    "Questions",
    "Stage",
    "Verdict",
    "Verdicts",
    "parse",
    "prompt",
    "schema",
]

Stage = Literal["caption", "describe", "second_pass", "review", "transform"]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Caption(_Reply):
    """What an image shows, in one to three sentences."""

    caption: str = Field(min_length=1)


class Description(_Reply):
    """A noun phrase for the target that does not name it."""

    perspective: Literal["attribute", "location"]
    length: Literal["short", "long"]
    text: str = Field(min_length=1)


class Descriptions(_Reply):
    """What one pass tells of a target."""

    descriptions: tuple[Description, ...] = Field(min_length=1)


class Verdict(_Reply):
    """What the second reader says of the description with this number."""

    number: int
    verdict: Literal["keep", "revise", "drop"]
    text: str
    reason: str


class Verdicts(_Reply):
    """One verdict for each description."""

    verdicts: tuple[Verdict, ...] = Field(min_length=1)


class Question(_Reply):
    """A question made from the description with this number, and its answer."""

    number: int
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class Questions(_Reply):
    """The questions of one pass; a number occurs once for each wording."""

    questions: tuple[Question, ...] = Field(min_length=1)


STAGES: Mapping[Stage, type[_Reply]] = {
    "caption": Caption,
    "describe": Descriptions,
    "second_pass": Descriptions,
    "review": Verdicts,
    "transform": Questions,
}
"""Stage -> what a reply to its prompt must hold."""


@dataclass(frozen=True)
class Prompt:
    """One stage's file: `name` is stage and version, as records carry it ("describe-1")."""

    stage: Stage
    name: str
    tokens_per_item: int
    system: str
    user: Template

    def fill(self, values: Mapping[str, str]) -> str:
        """The request; KeyError where a placeholder has no value."""
        return self.user.substitute(values).strip()


@lru_cache(maxsize=len(STAGES))
def prompt(stage: Stage) -> Prompt:
    """The prompt of a stage, read once."""
    text = (resources.files("medisee.engine") / "prompts" / f"{stage}.md").read_text("utf-8")
    _, facts, system, user = text.split("---\n", 3)
    known = yaml.safe_load(facts)
    name = f"{stage}-{known['version']}"
    return Prompt(stage, name, known["tokens_per_item"], _joined(system), Template(user))


def _joined(text: str) -> str:
    return " ".join(text.split())


@lru_cache(maxsize=len(STAGES))
def schema(stage: Stage) -> dict[str, Any]:
    """The JSON schema of a stage's reply, in the strict form that structured output wants."""
    return _strict(STAGES[stage].model_json_schema())


_KEPT = ("$defs", "$ref", "type", "properties", "items", "enum", "required", "additionalProperties")


def _strict(node: dict[str, Any]) -> dict[str, Any]:
    """Only the words that every endpoint knows; limits such as minItems are checked here later."""
    kept = {key: value for key, value in node.items() if key in _KEPT}
    for key in ("$defs", "properties"):
        if key in kept:
            kept[key] = {name: _strict(child) for name, child in kept[key].items()}
    if "items" in kept:
        kept["items"] = _strict(kept["items"])
    return kept


def parse(stage: Stage, text: str) -> _Reply:
    """The reply in a model's text, from behind a code fence or a word of courtesy too.

    Raises ValueError with what is wrong, in words that can be counted.
    """
    if not text.strip():
        raise ValueError("nothing")
    start, end = text.find("{"), text.rfind("}") + 1
    try:
        value = json.loads(text[start:end] if start >= 0 else text)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON, or cut off") from error
    try:
        return STAGES[stage].model_validate(value)
    except ValidationError as error:
        raise ValueError("JSON of another form than asked for") from error
