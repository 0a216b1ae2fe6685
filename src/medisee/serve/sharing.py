"""The same image, sent by several clients at a time, is looked at once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakValueDictionary

__all__ = ["Sharing"]


class Sharing:
    """Sessions of the model by what they show, as long as somebody holds them; keeps none itself.

    Whoever waits for an image that is being looked at waits along.
    """

    def __init__(self) -> None:
        self._sessions: WeakValueDictionary[bytes, Any] = WeakValueDictionary()
        self._coming: dict[bytes, asyncio.Task[Any]] = {}
        self._waiting: Counter[bytes] = Counter()
        self._secret = secrets.token_bytes(32)

    def key(self, source: bytes | str, choices: dict[str, Any]) -> bytes:
        """What tells images apart; means nothing outside this process."""
        digest = hashlib.blake2b(key=self._secret, digest_size=32)
        digest.update(json.dumps([isinstance(source, str), choices], sort_keys=True).encode())
        digest.update(source.encode() if isinstance(source, str) else source)
        return digest.digest()

    async def get(self, key: bytes, make: Callable[[], Awaitable[Any]]) -> Any:
        """The session of this key, made where nobody has it; given up when nobody waits for it."""
        if (session := self._sessions.get(key)) is not None:
            return session
        if key not in self._coming:
            self._coming[key] = asyncio.ensure_future(self._make(key, make))
        task = self._coming[key]
        self._waiting[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
                task.cancel()

    async def _make(self, key: bytes, make: Callable[[], Awaitable[Any]]) -> Any:
        try:
            session = await make()
            self._sessions[key] = session
            return session
        finally:
            del self._coming[key]
