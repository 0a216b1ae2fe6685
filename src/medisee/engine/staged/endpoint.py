"""Calls to an endpoint that speaks OpenAI's chat completions: paced, tried again, paid once."""

from __future__ import annotations

import base64
import io
import json
import shutil
import threading
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from medisee.engine.staged.calls import Call, CallLog, Kept, Stopped, Unanswered
from medisee.engine.staged.pacing import Bucket, Budget
from medisee.engine.staged.prompts import prompt, schema
from medisee.engine.staged.settings import EndpointSettings
from medisee.errors import DataError
from medisee.extras import needs_extra

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

__all__ = ["Endpoint", "Ledger"]

_SIDE = 768  # pixels of a picture's longer side: what vision models look at
_PICTURE_TOKENS = 800
_LETTERS_A_TOKEN = 4
_MOST_WAIT = 300.0  # seconds that a call waits at once, whatever the endpoint asks for
_SILENT = 12  # calls in a row without a reply after which the run ends
_ROOM = 64 << 20  # bytes that must be free before anything is paid for
_BUSY = frozenset((408, 409, 425, 429))


class Ledger:
    """What all endpoints of a build share: the log of what was paid for, the budget, the stop."""

    def __init__(self, path: Path, budget: float | None) -> None:
        self.log = CallLog(path)
        self.budget = Budget(budget, self.log)
        self.stop = threading.Event()
        self._folder, self._silent = path.parent, 0

    def check(self) -> None:
        """Before a call: there is room for its reply, and the endpoint is not dead."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self._folder).free < _ROOM:
            raise DataError(
                f"{self._folder}: less than {_ROOM >> 20} MB are free, and replies are paid for; "
                "make room and run again to go on"
            )
        if self._silent >= _SILENT:
            raise DataError(
                f"the endpoint left {_SILENT} calls in a row without a reply; what is done is "
                "kept: run again when it is back"
            )

    def heard(self, replied: bool) -> None:
        """Counts calls in a row that had no reply."""
        self._silent = 0 if replied else self._silent + 1


class _BusyError(Exception):
    """Worth another try; `wait`: seconds that the endpoint asks for."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class _Form:
    """In which of the dialects a request is put; not every endpoint knows the newest."""

    structured: str
    limit: str = "max_tokens"


def _other(form: _Form, complaint: str) -> _Form | None:
    """The form in which to send a request again after such a complaint."""
    if form.limit == "max_tokens" and "max_completion_tokens" in complaint:
        return replace(form, limit="max_completion_tokens")
    if any(word in complaint for word in ("response_format", "json_schema", "json_object")):
        simpler = {"schema": "object", "object": "text"}.get(form.structured)
        return replace(form, structured=simpler) if simpler else None
    return None


class Endpoint:
    """One model behind an endpoint. Any number of threads may call it."""

    def __init__(self, settings: EndpointSettings, ledger: Ledger) -> None:
        with needs_extra("an endpoint writer", "data"):
            import httpx
            import tenacity
        self.model = f"endpoint:{settings.model}"
        self._settings, self._ledger, self._tenacity = settings, ledger, tenacity
        self._transport_error = httpx.RequestError
        key = settings.key()
        headers: dict[str, str] = {}
        if key is not None:
            bare = settings.key_header == "api-key"
            value = key.get_secret_value()
            headers[settings.key_header] = value if bare else f"Bearer {value}"
        self._client = httpx.Client(
            headers=headers,
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=settings.concurrency),
        )
        base = httpx.URL(settings.url)
        self._url = base.copy_with(path=base.path.rstrip("/") + "/chat/completions")
        self._requests = Bucket(settings.requests_per_minute, ledger.stop)
        self._words = Bucket(settings.tokens_per_minute, ledger.stop)
        self._form = _Form(settings.structured)

    @property
    def fingerprint(self) -> str:
        """Of what decides the replies."""
        chosen = self._settings
        return json.dumps([self.model, chosen.images, chosen.max_tokens, chosen.body])

    def _is_shown(self, call: Call) -> bool:
        """Whether the image goes along."""
        return call.stage == "caption" or self._settings.images

    def tokens(self, call: Call) -> int:
        """About how many tokens a call has."""
        letters = len(prompt(call.stage).system) + len(call.user)
        picture = _PICTURE_TOKENS if self._is_shown(call) else 0
        return letters // _LETTERS_A_TOKEN + picture

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """The price of so many tokens."""
        prices = self._settings
        return (tokens_in * prices.price_in + tokens_out * prices.price_out) / 1e6

    def answer(self, call: Call) -> Kept:
        """The reply, from the log where this was asked before.

        Raises Unanswered, and DataError where the run must end: the budget, the key, the disk.
        """
        log, key = self._ledger.log, call.key(self.fingerprint, self._is_shown(call))
        with log.asking(key):
            kept = log.find(key)
            if kept is None:
                kept = self._pay(call, key)
            elif not log.tells_of(call.subject):  # of another image with the same words
                log.add(kept.model_copy(update={**call.about, "tokens": (0, 0), "cost": 0.0}))
        return kept

    def _pay(self, call: Call, key: str) -> Kept:
        self._ledger.check()
        expected = self.tokens(call)
        with self._ledger.budget.hold(self.cost(expected, self._settings.max_tokens)):
            try:
                kept = self._try(call, key, expected)
            except Unanswered:
                self._ledger.heard(False)
                raise
            self._ledger.heard(True)
            self._ledger.log.add(kept)
        return kept

    def _try(self, call: Call, key: str, expected: int) -> Kept:
        """Again and again while the endpoint is busy, as often as the settings allow."""
        first = self._settings.backoff
        backoff = self._tenacity.wait_exponential(
            multiplier=first, max=_MOST_WAIT
        ) + self._tenacity.wait_random(0, first)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.wait if isinstance(error, _BusyError) else 0.0
            return max(asked, backoff(state))

        trying = self._tenacity.Retrying(
            stop=self._tenacity.stop_after_attempt(self._settings.tries),
            wait=wait,
            retry=self._tenacity.retry_if_exception_type(_BusyError),
            sleep=self._tenacity.sleep_using_event(self._ledger.stop),
            reraise=True,
        )
        try:
            return trying(self._post, call, key, expected)
        except _BusyError as error:
            raise Unanswered(f"the endpoint did not answer ({error})", again=True) from error

    def _post(self, call: Call, key: str, expected: int) -> Kept:
        self._requests.take(1)
        self._words.take(expected)
        form = self._form
        response = self._send(call, key, form)
        while response.status_code in (400, 422) and (other := _other(form, response.text)):
            form = self._form = other
            response = self._send(call, key, form)
        if not response.is_success:
            return self._refusal(response, call, key)
        try:
            body = response.json()
            choice = body["choices"][0]
            message = choice["message"]
            content = message.get("content") or ""
            text = content if isinstance(content, str) else json.dumps(content)
            flaw = _flaw(choice, message, text)
            tokens = _usage(body, expected, text)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _BusyError("a reply that is no completion") from error
        return self._kept(call, key, text, flaw, tokens)

    def _send(self, call: Call, key: str, form: _Form) -> httpx.Response:
        if self._ledger.stop.is_set():
            raise Stopped
        try:
            # A kill may lose a reply on its way; who honours the key does not charge for it again.
            return self._client.post(
                self._url, json=self._body(call, form), headers={"Idempotency-Key": key}
            )
        except self._transport_error as error:
            raise _BusyError(type(error).__name__) from None

    def _body(self, call: Call, form: _Form) -> dict[str, Any]:
        user = call.user
        if form.structured != "schema" or call.attempt:
            user += "\n\nReply with one JSON object of this schema and nothing else:\n"
            user += json.dumps(schema(call.stage))
        content: Any = user
        if self._is_shown(call):
            picture = {"type": "image_url", "image_url": {"url": _picture(call.picture)}}
            content = [{"type": "text", "text": user}, picture]
        body = {
            "model": self._settings.model,
            "messages": [
                {"role": "system", "content": prompt(call.stage).system},
                {"role": "user", "content": content},
            ],
            form.limit: self._settings.max_tokens,
            **self._settings.body,
        }
        if form.structured == "schema":
            named = {"name": call.stage, "strict": True, "schema": schema(call.stage)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif form.structured == "object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _refusal(self, response: httpx.Response, call: Call, key: str) -> Kept:
        """What an error status means: a reply of a kind, another try, or the end of the run."""
        status = response.status_code
        if status in _BUSY or status >= 500:
            wait = _retry_after(response.headers.get("retry-after", ""))
            if wait > _MOST_WAIT:
                raise Unanswered(f"the endpoint is busy for long ({status})", again=True)
            raise _BusyError(str(status), wait)
        if status == 400 and "content_filter" in response.text:
            return self._kept(call, key, "", "refused", (0, 0))
        if status in (401, 403):
            raise DataError(f"the endpoint does not accept the key ({status}); look at key_env")
        if status == 404 or response.is_redirect:
            raise DataError(
                f"the endpoint does not know this address or model ({status}); look at url "
                f"({self._url.host}) and model"
            )
        raise Unanswered(f"the endpoint refused the request ({status})", again=False)

    def _kept(self, call: Call, key: str, text: str, flaw: str, tokens: tuple[int, int]) -> Kept:
        return Kept(
            **call.about,
            reply=text,
            flaw=flaw,
            writer=self.model,
            key=key,
            tokens=tokens,
            cost=self.cost(*tokens),
        )


def _flaw(choice: dict[str, Any], message: dict[str, Any], text: str) -> str:
    """Why a paid reply is none; "" where it may be one."""
    reason = choice.get("finish_reason")
    if message.get("refusal") or reason == "content_filter":
        return "refused"
    if reason == "length":
        return "cut off"
    return "" if text.strip() else "nothing"


def _usage(body: dict[str, Any], expected: int, text: str) -> tuple[int, int]:
    """Tokens in and out as the endpoint counts them; estimated where it does not."""
    usage = body.get("usage") or {}
    spoken = len(text) // _LETTERS_A_TOKEN
    return int(usage.get("prompt_tokens", expected)), int(usage.get("completion_tokens", spoken))


def _retry_after(value: str) -> float:
    """Seconds of a Retry-After header: a number, or a date; 0 for anything else."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        then = parsedate_to_datetime(value)
        return max(0.0, (then - datetime.now(timezone.utc)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _picture(path: Path) -> str:
    """The image as a data URL: pixels alone, nothing else that the file may hold."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    small.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
