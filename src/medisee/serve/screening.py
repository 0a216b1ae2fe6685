"""The screening page's server: records one after the other, verdicts back.

`screening_app(queue)` is a FastAPI app for one set of records. People share a queue by name: a
record goes to one of them, but for a share that all of them judge, from which their agreement is
computed.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, StringConstraints, ValidationError, model_validator
from starlette.middleware.trustedhost import TrustedHostMiddleware

from medisee.data.sa_med2d import Index
from medisee.engine.verdicts import Decision, Verdict, VerdictStore, agreements, digest_of
from medisee.errors import DataError
from medisee.structures import QARecord, encode_rle

from . import errors, page

__all__ = ["FACETS", "Queue", "screening_app"]

FACETS = ("category", "modality", "perspective", "writer", "kind", "split")
"""What records can be chosen by."""

LEASE_SECONDS = 600.0
"""How long a record stays with whom it was given to; then somebody else may have it."""

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Place(NamedTuple):
    """Where a record's line is, and what it can be chosen by, in the order of `FACETS`."""

    id: str
    file: int
    offset: int
    facets: tuple[str, ...]


@dataclass
class Queue:
    """A set of records in a random but fixed order, and who has which of them.

    files: JSONL files of QA records. data: folder of the images and masks. overlap: share of the
    records that everybody judges, 0..1.
    """

    files: Sequence[Path]
    data: Index
    store: VerdictStore
    overlap: float = 0.2
    places: dict[str, Place] = field(default_factory=dict)
    _leases: dict[str, tuple[str, float]] = field(default_factory=dict)
    _totals: dict[tuple[tuple[str, str], ...], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        found = {place.id: place for n in range(len(self.files)) for place in self._scan(n)}
        if not found:
            raise DataError("there is no record to screen")
        self.places = dict(sorted(found.items(), key=lambda item: _chance(item[0], "order")))

    def _scan(self, number: int) -> Iterator[Place]:
        """The records of a file, without holding them."""
        path, offset = self.files[number], 0
        with path.open("rb") as lines:
            for count, line in enumerate(lines, 1):
                if line.strip():
                    record = _parse(line, f"{path.name}, line {count}")
                    yield Place(record.id, number, offset, _facets(record))
                offset += len(line)

    def load(self, key: str) -> QARecord:
        """A record by its id; DataError when there is none."""
        place = self.places.get(key)
        if place is None:
            raise DataError("there is no such record in this set")
        with self.files[place.file].open("rb") as lines:
            lines.seek(place.offset)
            return _parse(lines.readline(), self.files[place.file].name)

    def next(self, name: str, wanted: dict[str, str]) -> str | None:
        """Gives `name` a record that they have not seen; None when nothing is left for them."""
        with self._lock:
            now = time.monotonic()
            for place in self.places.values():
                if _fits(place, wanted) and self._is_free(place, name, now):
                    self._leases[place.id] = (name, now + LEASE_SECONDS)
                    return place.id
        return None

    def _is_free(self, place: Place, name: str, now: float) -> bool:
        verdicts = self.store.about(place.id)
        if name in verdicts:
            return False
        if self.is_shared(place.id):
            return True
        holder, until = self._leases.get(place.id, (name, 0.0))
        judged = any(verdict.decision != "skip" for verdict in verdicts.values())
        return not judged and (holder == name or until < now)

    def is_shared(self, key: str) -> bool:
        """Whether everybody judges this record."""
        return _chance(key, "shared") < self.overlap

    def judge(self, verdict: Verdict) -> None:
        """Keeps a verdict and frees the record."""
        self.store.add(verdict)
        with self._lock:
            self._leases.pop(verdict.record, None)

    def facets(self) -> dict[str, dict[str, int]]:
        """For each facet the values that occur, with the number of records, most first."""
        counts = {name: Counter[str]() for name in FACETS}
        for place in self.places.values():
            for name, value in zip(FACETS, place.facets, strict=True):
                counts[name][value] += 1
        return {name: dict(counter.most_common()) for name, counter in counts.items()}

    def _count(self, wanted: tuple[tuple[str, str], ...]) -> int:
        if wanted not in self._totals:
            chosen = dict(wanted)
            self._totals[wanted] = sum(_fits(place, chosen) for place in self.places.values())
        return self._totals[wanted]

    def progress(self, name: str, wanted: dict[str, str]) -> dict[str, Any]:
        """How far the chosen records are: all of them, judged by `name`, judged by anybody."""
        seen = [
            verdicts
            for key, verdicts in self.store.records()
            if (place := self.places.get(key)) and _fits(place, wanted)
        ]
        return {
            "total": self._count(tuple(sorted(wanted.items()))),
            "own": sum(name in verdicts for verdicts in seen),
            "all": sum(any(v.decision != "skip" for v in verdicts.values()) for verdicts in seen),
            "decisions": dict(self.store.counts(name)),
            "agreement": [vars(agreement) for agreement in agreements(self.store)],
        }


def _parse(line: bytes, where: str) -> QARecord:
    try:
        return QARecord.model_validate_json(line)
    except ValidationError as error:
        raise DataError(f"{where}: is no question-answer record") from error


def _facets(record: QARecord) -> tuple[str, ...]:
    labels = " + ".join(dict.fromkeys(target.label for target in record.targets))
    values = (
        labels or "nothing (to be refused)",
        record.modality,
        record.perspective,
        record.writer,
        record.kind,
        record.split,
    )
    return tuple(sys.intern(value or "not stated") for value in values)


def _fits(place: Place, wanted: dict[str, str]) -> bool:
    return all(
        value == wanted[name]
        for name, value in zip(FACETS, place.facets, strict=True)
        if wanted.get(name)
    )


def _chance(key: str, salt: str) -> float:
    """A number in [0, 1) that follows from a record's id."""
    return int.from_bytes(hashlib.sha256(f"{salt}|{key}".encode()).digest()[:8], "big") / 2**64


Name = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[^\x00-\x1f]{1,40}$")]


class Judgement(BaseModel):
    """What the page sends for a record."""

    id: str
    name: Name
    decision: Decision
    question: Annotated[str, Field(max_length=2000)] | None = None
    answer: Annotated[str, Field(max_length=4000)] | None = None
    note: Annotated[str, Field(max_length=2000)] = ""
    filter: dict[Literal["category", "modality", "perspective", "writer", "kind", "split"], str] = (
        Field(default_factory=dict)
    )

    @model_validator(mode="after")
    def _edits_have_words(self) -> Judgement:
        if self.decision == "edit" and not (self.question or "").strip():
            raise ValueError("an edited record needs a question")
        return self


def screening_app(queue: Queue, token: str | None = None, loopback: bool = True) -> FastAPI:
    """The app: the page at `/`, its interface below `/v1`.

    token: asked for as a bearer token where given. loopback: answer only to names of this
    machine, so that no web page can reach the server under a name of its own.
    """

    def check_token(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token is not None and not secrets.compare_digest(given.encode(), token.encode()):
            raise errors.ServeError(401, "no_token", "a valid token is needed")

    app = FastAPI(title="MediSee screening", docs_url=None, redoc_url=None, openapi_url=None)
    if loopback:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(_LOOPBACK))
    errors.install(app)
    guard = [Depends(check_token)]

    @app.get("/v1/set", dependencies=guard)
    def describe() -> dict[str, Any]:
        return {"facets": queue.facets(), "screeners": queue.store.screeners}

    @app.get("/v1/next", dependencies=guard)
    def following(request: Request, name: Name) -> dict[str, Any]:
        wanted = _wanted(dict(request.query_params))
        key = queue.next(name, wanted)
        record = None if key is None else _described(queue, key, name)
        return {"record": record, "progress": queue.progress(name, wanted)}

    @app.get("/v1/records/{key}", dependencies=guard)
    def again(key: str, name: Name) -> dict[str, Any]:
        return {"record": _described(queue, key, name)}

    @app.get("/v1/records/{key}/image.png", dependencies=guard)
    def picture(key: str) -> Response:
        return Response(_png(queue, key), media_type="image/png")

    @app.post("/v1/verdicts", dependencies=guard)
    def judge(judgement: Judgement) -> dict[str, Any]:
        queue.judge(_verdict(queue, judgement))
        wanted = _wanted({str(name): value for name, value in judgement.filter.items()})
        return {"progress": queue.progress(judgement.name, wanted)}

    page.mount(app, "screening")
    return app


def _wanted(given: dict[str, str]) -> dict[str, str]:
    return {name: given[name] for name in FACETS if given.get(name)}


def _verdict(queue: Queue, given: Judgement) -> Verdict:
    record = queue.load(given.id)
    edited = given.decision == "edit"
    return Verdict(
        record=given.id,
        digest=digest_of(record),
        screener=given.name,
        decision=given.decision,
        question=(given.question or "").strip() if edited else None,
        answer=(given.answer or "").strip() if edited else None,
        note=given.note,
    )


def _described(queue: Queue, key: str, name: str) -> dict[str, Any]:
    """A record as the page shows it, its masks as COCO RLE; `flaw` says what cannot be shown."""
    record = queue.load(key)
    own = queue.store.about(key).get(name)
    body = record.model_dump(mode="json", by_alias=True, exclude={"targets", "label", "box"})
    try:
        targets, flaw = [_target(queue.data, target) for target in record.targets], None
        height, width = queue.data.load_image(record.image).shape[:2]
    except DataError as error:
        targets, flaw, height, width = [], str(error), 0, 0
    return {
        **body,
        "targets": targets,
        "flaw": flaw,
        "size": {"width": width, "height": height},
        "shared": queue.is_shared(key),
        "own": own and own.model_dump(mode="json"),
    }


def _target(data: Index, target: Any) -> dict[str, Any]:
    mask = data.load_union(target.masks)
    return {
        "label": target.label,
        "box": target.box,
        "area_px": int(mask.sum()),
        "mask": encode_rle(mask),
    }


def _png(queue: Queue, key: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(queue.data.load_image(queue.load(key).image)).save(buffer, "PNG")
    return buffer.getvalue()
