"""A model that takes its time, pictures, and the app behind a real socket."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from medisee.testing import FakeModel

EVENTS = {"Accept": "text/event-stream"}


def png(height: int = 40, width: int = 60, seed: int = 0) -> bytes:
    """A small grey picture."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class SlowModel(FakeModel):
    """Takes its time over every piece of text; `said` counts them, `batches` has the sizes."""

    def __init__(self, seconds: float = 0.0, pieces: int = 5) -> None:
        super().__init__()
        self.seconds, self.pieces = seconds, pieces
        self.said, self.opened, self.batches = 0, 0, []
        self.gate = threading.Event()
        self.gate.set()

    def open(self, image: Any) -> Any:
        self.opened += 1
        session = super().open(image)
        begin = session.begin

        def slowly(questions: Any, histories: Any = None) -> Any:
            self.gate.wait(10)
            self.batches.append(list(questions))
            session.histories = [list(history) for history in histories]
            return [(answer, self._words(answer)) for answer, _ in begin(questions)]

        session.begin = slowly
        return session

    def _words(self, answer: Any) -> Iterator[str]:
        for number in range(self.pieces):
            time.sleep(self.seconds)
            self.said += 1
            answer.text += f"word{number} "
            yield f"word{number} "
        answer.text = answer.text.strip()


@contextmanager
def live(app: Any) -> Iterator[tuple[str, int]]:
    """The app behind a socket of its own, as `medisee serve` runs it; host and port."""
    from medisee.serve.server import listen, make_server

    server, listening = make_server(app), listen("127.0.0.1", 0)
    place = listening.getsockname()[:2]
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield place
    finally:
        server.should_exit = True
        thread.join(15)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that happens in another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def connect(place: tuple[str, int]) -> socket.socket:
    return socket.create_connection(place, timeout=15)
