"""Multimodal language models that name a target: transformers' chat models, and services."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

from PIL import Image

from medisee.errors import ModelError
from medisee.extras import needs_extra
from medisee.hub import cache_folder
from medisee.structures import MedicalImage

__all__ = ["ChatNamer", "ServiceNamer"]

NEW_TOKENS = 24
REFUSED = "none"
"""What stands for an answer that a service refuses to give: wrong, like any other 'none'."""


class ChatNamer:
    """LLaVA-Med, Janus-Pro or any image-text-to-text model of transformers, greedy."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def load(cls, folder: str, device: str | None = None) -> ChatNamer:
        """Model and processor of a folder or hub id; ModelError when they cannot be loaded."""
        with needs_extra("a multimodal language model", "torch"):
            from transformers import AutoModelForImageTextToText, AutoProcessor
        try:
            model = AutoModelForImageTextToText.from_pretrained(folder)
            processor = AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ModelError(
                f"{folder} holds no chat model that can be loaded: {reason}"
            ) from error
        return cls(model.to(device or "cpu").eval(), processor)

    def __call__(self, image: MedicalImage, prompt: str) -> str:
        """The model's answer to prompt and image."""
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        picture = Image.fromarray(image.display)
        inputs = self.processor(text=text, images=picture, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        made = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = made[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.tokenizer.decode(new, skip_special_tokens=True))


class ServiceNamer:
    """A model behind an OpenAI-compatible endpoint: temperature 0, tried again, paid for once.

    Answers are kept by content in the cache folder (`namers/MODEL.jsonl`), so a run that goes on,
    or another segmenter behind the same model, pays nothing. The key is OPENAI_API_KEY's.
    """

    def __init__(self, url: str, model: str, kept: Path | None = None, wait: float = 1.0) -> None:
        with needs_extra("an endpoint", "data"):
            import httpx
            import tenacity
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers=headers, timeout=120)
        self._url, self._model = url.rstrip("/") + "/chat/completions", model
        safe = "".join(char if char.isalnum() or char in "-." else "_" for char in model)
        self._path = kept or cache_folder() / "namers" / f"{safe}.jsonl"
        self._known = dict(_kept(self._path))
        self._retry = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(6),
            wait=tenacity.wait_exponential_jitter(initial=wait, max=60 * wait),
            retry=tenacity.retry_if_exception_type((httpx.TransportError, _BusyError)),
            reraise=True,
        )
        self._transport_error = httpx.TransportError

    def __call__(self, image: MedicalImage, prompt: str) -> str:
        """The service's answer; ModelError when it gives none after several tries."""
        body = self._body(image, prompt)
        key = hashlib.sha256(json.dumps([self._url, body]).encode()).hexdigest()
        if key not in self._known:
            try:
                answer = self._retry(self._ask, body)
            except (self._transport_error, _BusyError) as error:
                raise ModelError("the endpoint does not answer; what it said is kept") from error
            self._keep(key, answer)
        return self._known[key]

    def _body(self, image: MedicalImage, prompt: str) -> dict[str, Any]:
        stream = io.BytesIO()
        Image.fromarray(image.display).save(stream, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
        content = [
            {"type": "text", "text": prompt},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        messages = [{"role": "user", "content": content}]
        return {"model": self._model, "temperature": 0, "messages": messages}

    def _ask(self, body: dict[str, Any]) -> str:
        response = self._client.post(self._url, json=body)
        if response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
            raise _BusyError
        if response.status_code == 400 and "content_filter" in response.text:
            return REFUSED
        if not response.is_success:
            raise ModelError(f"the endpoint refused the request: {response.status_code}")
        try:
            message = response.json()["choices"][0]["message"]
            return REFUSED if message.get("refusal") else str(message["content"] or REFUSED)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError("the endpoint's reply is no chat completion") from error

    def _keep(self, key: str, answer: str) -> None:
        self._known[key] = answer
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, answer]) + "\n")


class _BusyError(Exception):
    """Worth another try."""


def _kept(path: Path) -> list[tuple[str, str]]:
    """Answers of earlier runs; a line that a kill cut off is none."""
    lines = path.read_text(encoding="utf-8").splitlines(True) if path.is_file() else []
    return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]
