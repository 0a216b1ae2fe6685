"""From a predictions file and the data set's masks to one row per question; no model is needed.

Masks are compared as run lengths, without being painted, so the time follows their outlines and
not their area. Whatever is wrong with the file is collected and reported together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from medisee.boxes import box_iou
from medisee.data.sa_med2d import Index
from medisee.entities import load_entities
from medisee.errors import DataError
from medisee.evaluation.metrics import Overlap, surface_dice
from medisee.evaluation.pairs import Pair, Selection, make_pairs
from medisee.evaluation.predictions import Prediction, read_header, read_lines
from medisee.evaluation.report import Report, Row
from medisee.structures import RLE, RefusalReason, encode_rle

__all__ = ["score"]

SHOWN = 8
"""So many faults of a predictions file are told one by one."""

Runs = dict[str, Any]  # pycocotools' form of an RLE: size, and counts as bytes
Spacings = Mapping[str, tuple[float, float]]


def score(
    path: Path,
    index: Index,
    questions: Path | None = None,
    surface: float | None = None,
    spacings: Spacings | None = None,
) -> Report:
    """Compares the predictions with the masks of the data set.

    path: what `predict` wrote; questions: the file that was asked, if one was; surface: adds the
    normalised surface distance at so many mm, for which `spacings` has (row, column) mm a pixel
    of each image. Raises DataError that lists what is wrong: answers that are missing, foreign or
    given twice, masks of another size, broken lines; nothing is skipped.
    """
    header = read_header(path)
    pairs = {pair.id: pair for pair in make_pairs(index, _selection(header["asked"], questions))}
    truths = _Truths(index)
    measure = None if surface is None else _Surface(surface, spacings or {})
    rows: dict[str, Row] = {}
    faults: list[str] = []
    for number, line in read_lines(path):
        try:
            pair = _pair_of(line, pairs, rows)
            rows[pair.id] = _row(pair, line, truths, measure)  # type: ignore[arg-type]
        except _FaultError as fault:
            faults.append(f"line {number} {fault}")
    faults += [f"no answer to {name}" for name in pairs if name not in rows]
    if faults:
        raise DataError(f"{path.name}: {_listed(faults)}")
    ordered = [rows[name] for name in pairs]
    return Report(header["model"], header["asked"]["split"], ordered, header["about"])


class _FaultError(Exception):
    """What is wrong with one line."""


def _listed(faults: Sequence[str]) -> str:
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return f"{len(faults)} faults: {'; '.join(faults[:SHOWN])}{more}"


def _selection(asked: Mapping[str, Any], questions: Path | None) -> Selection:
    """The selection that the header tells; DataError when the questions are others."""
    kinds = asked["kinds"] and tuple(asked["kinds"])
    selection = Selection(asked["split"], questions, asked["limit"], kinds, asked["seed"])
    if selection.to_dict() != asked:
        told = "without a question file" if asked["questions"] is None else "of another file"
        raise DataError(f"the predictions answer questions {told}; give the one that was asked")
    return selection


def _pair_of(line: Prediction | None, pairs: Mapping[str, Pair], rows: Mapping[str, Row]) -> Pair:
    if line is None or not {"id", "text", "refusal", "findings"} <= line.keys():
        raise _FaultError("is not an answer (id, text, refusal, findings)")
    if line["id"] not in pairs:
        raise _FaultError(f"answers {line['id']}, which was not asked")
    if line["id"] in rows:
        raise _FaultError(f"answers {line['id']} again")
    if line["refusal"] not in (None, *(reason.value for reason in RefusalReason)):
        raise _FaultError(f"has an unknown reason of refusal ({line['id']})")
    return pairs[line["id"]]


def _row(pair: Pair, line: Prediction, truths: _Truths, surface: _Surface | None) -> Row:
    true = truths.of(pair)
    findings = _checked(pair, line["findings"], true["size"])
    predicted = _union([finding["mask"] for finding in findings], true["size"])
    both = coco.merge([predicted, true], intersect=True)
    areas = coco.area([both, predicted, true])
    return Row(
        pair=pair,
        overlap=Overlap(*(int(area) for area in areas)),
        box_iou=_box_iou([finding["box"] for finding in findings], true),
        named=bool(pair.labels) and set(pair.labels) <= _named(line["text"]),
        refused=line["refusal"] is not None or not findings,
        score=findings[0]["score"] if len(findings) == 1 else None,
        findings=len(findings),
        seconds=line.get("seconds", {}).get("wall"),
        memory=line.get("memory"),
        surface=None if surface is None else surface.dice(pair, predicted, true),
    )


def _checked(pair: Pair, findings: Any, size: Sequence[int]) -> list[dict[str, Any]]:
    """The findings with their masks as runs."""
    checked = []
    try:
        for finding in findings:
            box, certain = [float(edge) for edge in finding["box"]], float(finding["score"])
            if len(box) != 4 or not np.isfinite(box).all() or not 0 <= certain <= 1:
                raise _FaultError(f"has a finding with an impossible box or score ({pair.id})")
            mask = _runs(finding["mask"], size, pair.id)
            checked.append({"box": box, "score": certain, "mask": mask})
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _FaultError(f"has a finding without box, score or mask ({pair.id})") from error
    return checked


def _runs(rle: RLE, size: Sequence[int], name: str) -> Runs:
    if list(rle["size"]) != list(size):
        shown = " x ".join(str(side) for side in rle["size"])
        raise _FaultError(f"has a mask of {shown}, the image is {size[0]} x {size[1]} ({name})")
    counts = rle["counts"].encode("ascii")
    if _pixels(counts) != size[0] * size[1]:
        raise _FaultError(f"has a mask that is no RLE of its size ({name})")
    return {"size": list(size), "counts": counts}


def _pixels(counts: bytes) -> int:
    """How many pixels COCO's compressed counts cover; -1 for what is no run-length code.

    Each run is written in groups of five bits, lowest first, and from the fourth run on as the
    difference to the run two before it (rleToString in COCO's maskApi.c).
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return -1
    ends = np.flatnonzero(codes < 32)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if lengths.max() > 7:
        return -1  # longer than any image
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs = [values[:1], np.cumsum(values[1::2]), np.cumsum(values[2::2])]
    return (
        int(sum(run.sum() for run in runs)) if min(run.min(initial=0) for run in runs) >= 0 else -1
    )


def _union(masks: Sequence[Runs], size: Sequence[int]) -> Runs:
    if not masks:
        return _empty(*size)
    return masks[0] if len(masks) == 1 else coco.merge(list(masks))


@lru_cache(maxsize=4096)
def _empty(height: int, width: int) -> Runs:
    return coco.encode(np.zeros((height, width), np.uint8, order="F"))


class _Truths:
    """The true masks as runs, each read once."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._known: dict[tuple[str, ...], Runs] = {}

    def of(self, pair: Pair) -> Runs:
        """The union of the pair's masks; empty where it has no target."""
        key = pair.masks or (pair.image,)
        if key not in self._known:
            self._known[key] = self._read(pair)
        return self._known[key]

    def _read(self, pair: Pair) -> Runs:
        if not pair.masks:
            return _empty(*self._index.load_image(pair.image).shape[:2])
        rle = encode_rle(self._index.load_union(pair.masks))
        return {"size": rle["size"], "counts": rle["counts"].encode("ascii")}


@dataclass(frozen=True)
class _Surface:
    """The normalised surface distance at a tolerance in mm."""

    tolerance: float
    spacings: Spacings

    def dice(self, pair: Pair, predicted: Runs, true: Runs) -> float:
        if pair.image not in self.spacings:
            raise _FaultError(f"is about {pair.image}, whose spacing in mm is not given")
        masks = (coco.decode(runs).astype(bool) for runs in (predicted, true))
        return surface_dice(*masks, self.tolerance, self.spacings[pair.image])


def _box_iou(boxes: Sequence[Sequence[float]], true: Runs) -> float:
    """IoU of the box around all boxes with the box around the truth; 0 when one is missing."""
    x, y, width, height = coco.toBbox(true)
    if not boxes or not width:
        return 0.0
    edges = np.asarray(boxes)
    around = np.concatenate([edges[:, :2].min(axis=0), edges[:, 2:].max(axis=0)])
    return float(box_iou(around[None], [[x, y, x + width, y + height]])[0, 0])


@lru_cache(maxsize=65536)
def _named(text: str) -> frozenset[str]:
    return frozenset(entity.name for entity in load_entities().find(text))
