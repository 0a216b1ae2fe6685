"""The settings of an endpoint writer, from a YAML file. Keys come from the environment only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
)

from medisee.errors import DataError

__all__ = ["EndpointSettings", "WriterSettings", "read_settings"]


def _is_plain_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must begin with http:// or https://")
    if parts.username or parts.password:
        raise ValueError("must hold no name and no password; name the key's variable in key_env")
    return url


class _Strict(BaseModel):
    # Errors must not repeat what was given: it may be a key in the wrong place.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class EndpointSettings(_Strict):
    """One endpoint that speaks OpenAI's chat completions.

    url: up to what comes before /chat/completions; a query (Azure's api-version) is kept.
    model: as the endpoint names it.
    key_env: environment variable that holds the key; none for an endpoint without.
    key_header: "authorization" (Bearer) or "api-key" (Azure).
    images: whether the image goes along. A captioner always gets it.
    structured: how JSON is asked for; where the endpoint knows no "schema", "object", then "text"
        is tried.
    body: more of the request, such as {temperature: 0.7, seed: 1}.
    max_tokens: most tokens of a reply.
    concurrency: calls at the same time.
    requests_per_minute, tokens_per_minute: limits of the endpoint; none for no limit.
    tries: how often a call is tried when the endpoint is busy, down or cut off.
    backoff: seconds before the second try; doubled each time, at least what Retry-After says.
    timeout: seconds to wait for a reply.
    price_in, price_out: of a million tokens, in any currency; for estimate and budget.
    """

    url: Annotated[str, AfterValidator(_is_plain_url)]
    model: str = Field(min_length=1)
    key_env: str | None = Field(default=None, pattern=r"^[A-Z_][A-Z0-9_]{0,63}$")
    key_header: Literal["authorization", "api-key"] = "authorization"
    images: bool = False
    structured: Literal["schema", "object", "text"] = "schema"
    body: dict[str, Any] = Field(default_factory=dict)
    max_tokens: PositiveInt = 2000
    concurrency: int = Field(default=8, ge=1, le=256)
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    tries: int = Field(default=6, ge=1, le=20)
    backoff: NonNegativeFloat = 1.0
    timeout: PositiveFloat = 120.0
    price_in: NonNegativeFloat = 0.0
    price_out: NonNegativeFloat = 0.0

    def key(self) -> SecretStr | None:
        """The key; DataError where its variable is not set."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise DataError("the environment variable that key_env names is not set or empty")
        if not (key.isascii() and key.isprintable()):
            raise DataError("the environment variable that key_env names holds no key")
        return SecretStr(key)


class WriterSettings(_Strict):
    """Who does which stage; "writer" for the writer's own endpoint.

    captioner: describes each image first; none for no captions.
    reviewer: reads the descriptions once more (the paper's filter); none for the rules alone.
    budget: most that the calls of this build may cost together, earlier runs included.
    """

    writer: EndpointSettings
    captioner: EndpointSettings | Literal["writer"] | None = None
    reviewer: EndpointSettings | Literal["writer"] | None = None
    budget: PositiveFloat | None = None


def read_settings(path: Path) -> WriterSettings:
    """The settings in a YAML file; DataError says which entry cannot be used, never its value."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise DataError(f"{path}{where}: is not valid YAML") from None
    try:
        settings = WriterSettings.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "settings"
        raise DataError(f"{path}: {place}: {first['msg']}") from None
    if settings.budget is not None and not _has_price(settings):
        raise DataError(f"{path}: a budget needs price_in and price_out of the endpoints")
    return settings


def _has_price(settings: WriterSettings) -> bool:
    roles = (settings.writer, settings.captioner, settings.reviewer)
    endpoints = [role for role in roles if isinstance(role, EndpointSettings)]
    return any(endpoint.price_in or endpoint.price_out for endpoint in endpoints)
