"""How much the server takes on: one place for every bound."""

from __future__ import annotations

from dataclasses import dataclass

from medisee.io import Limits as ImageLimits

__all__ = ["Limits"]


IMAGE = ImageLimits(pixels=25_000_000, frames=10_000, unpacked_bytes=512 << 20)


@dataclass(frozen=True)
class Limits:
    """Bounds of a server. Bytes and seconds where the name does not say otherwise.

    body_bytes: one request's body. inbox_bytes: all bodies that are in memory at one time.
    sessions, session_bytes: images kept open, their number and memory; the longest unused one
        makes room for a new one. session_seconds: how long an unused one is kept.
    rounds: answers of a session that can still be downloaded.
    queue: questions and images that wait for the model; more are told to come again.
    batch: questions that go through the model together; with 1 nothing is done together, and an
        image that several clients send is looked at for each of them. gather_seconds: how long
        the first question waits for others about the same image.
    volumes: whole volumes that are asked or wait for it; volume_seconds: for all slices of one.
    request_seconds: from a question's arrival to its last word. patience_seconds: how long a
        client may keep silent in the middle of sending or receiving.
    """

    body_bytes: int = 64 << 20
    inbox_bytes: int = 256 << 20
    image: ImageLimits = IMAGE
    questions: int = 16
    messages: int = 64
    sessions: int = 64
    session_bytes: int = 1 << 30
    session_seconds: float = 1800.0
    rounds: int = 32
    queue: int = 64
    batch: int = 16
    gather_seconds: float = 0.005
    volumes: int = 4
    volume_seconds: float = 1800.0
    request_seconds: float = 60.0
    patience_seconds: float = 10.0
