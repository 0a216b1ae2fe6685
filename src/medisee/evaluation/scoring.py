"""From a predictions file and the data set's masks to one row per question; no model is needed.

Masks are compared as run lengths, without being painted, so the time follows their outlines and
not their area. Whatever is wrong with the file is collected and reported together.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from medisee.boxes import box_iou
from medisee.data.sa_med2d import Index
from medisee.entities import load_entities
from medisee.errors import DataError
from medisee.evaluation.metrics import Overlap, surface_dice
from medisee.evaluation.pairs import Pair, Selection, make_pairs
from medisee.evaluation.predictions import Prediction, read_header, read_lines
from medisee.evaluation.report import Report, Row
from medisee.parallel import each
from medisee.structures import RefusalReason, encode_rle

__all__ = ["score"]

SHOWN = 8
"""So many faults of a predictions file are told one by one."""

_WORTH_A_PROCESS = 20_000  # answers: a process takes two seconds to start
_AT_ONCE = 128  # answers: what numpy works on then fits into the processor's cache
_BLOCK = 32  # of boxes compared all with all, for the sake of the diagonal
_LONGEST = 7  # groups of a run: more than any image has pixels

_Fault = tuple[int, str]  # line, what is wrong with it
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
    measure = None if surface is None else _Surface.over(pairs.values(), surface, spacings or {})
    rows: dict[str, Row] = {}
    faults: list[_Fault] = []
    seen: set[str] = set()
    answers = _answers(path, pairs, truths, faults, seen)
    workers = min(os.cpu_count() or 1, 1 + len(pairs) // _WORTH_A_PROCESS)
    for found, broken in each(partial(_compared, measure), _batches(answers), workers):
        rows |= {row.pair.id: row for row in found}
        faults += broken
    told = [text for _, text in sorted(faults)]
    told += [f"no answer to {name}" for name in pairs if name not in seen]
    if told:
        raise DataError(f"{path.name}: {_listed(told)}")
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


@dataclass(frozen=True)
class _Answer:
    """One line that can be read: its pair, its boxes and masks, and the true mask."""

    line: int
    pair: Pair
    said: Prediction
    boxes: Sequence[Sequence[float]]
    masks: Sequence[Runs]
    true: Runs


def _answers(
    path: Path, pairs: Mapping[str, Pair], truths: _Truths, faults: list[_Fault], seen: set[str]
) -> Iterator[_Answer]:
    """The lines one by one; what cannot be read goes to `faults`, all ids to `seen`."""
    for number, line in read_lines(path):
        try:
            pair = _pair_of(line, pairs, seen)
            seen.add(pair.id)
            true = truths.of(pair)
            boxes, masks = _findings(pair, line["findings"], true["size"])  # type: ignore[index]
            yield _Answer(number, pair, line, boxes, masks, true)  # type: ignore[arg-type]
        except _FaultError as fault:
            faults.append((number, f"line {number} {fault}"))


def _batches(answers: Iterator[_Answer]) -> Iterator[list[_Answer]]:
    while batch := list(islice(answers, _AT_ONCE)):
        yield batch


def _pair_of(line: Prediction | None, pairs: Mapping[str, Pair], seen: Container[str]) -> Pair:
    if line is None or not {"id", "text", "refusal", "findings"} <= line.keys():
        raise _FaultError("is not an answer (id, text, refusal, findings)")
    if line["id"] not in pairs:
        raise _FaultError(f"answers {line['id']}, which was not asked")
    if line["id"] in seen:
        raise _FaultError(f"answers {line['id']} again")
    if line["refusal"] not in _REASONS:
        raise _FaultError(f"has an unknown reason of refusal ({line['id']})")
    return pairs[line["id"]]


_REASONS = (None, *(reason.value for reason in RefusalReason))


def _findings(
    pair: Pair, findings: Any, size: Sequence[int]
) -> tuple[list[list[float]], list[Runs]]:
    """Boxes and masks, the masks of the right size but not yet looked into."""
    boxes, masks = [], []
    try:
        for finding in findings:
            box, certain = [float(edge) for edge in finding["box"]], float(finding["score"])
            if len(box) != 4 or not all(map(isfinite, box)) or not 0 <= certain <= 1:
                raise _FaultError(f"has a finding with an impossible box or score ({pair.id})")
            rle = finding["mask"]
            if list(rle["size"]) != list(size):
                told = " x ".join(str(side) for side in rle["size"])
                of = f"the image is {size[0]} x {size[1]}"
                raise _FaultError(f"has a mask of {told}, {of} ({pair.id})")
            boxes.append(box)
            masks.append({"size": rle["size"], "counts": rle["counts"].encode("ascii")})
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _FaultError(f"has a finding without box, score or mask ({pair.id})") from error
    return boxes, masks


def _compared(surface: _Surface | None, batch: Sequence[_Answer]) -> tuple[list[Row], list[_Fault]]:
    """One row per answer; many at once, since each call into numpy costs more than its work."""
    masks = [(answer, mask) for answer in batch for mask in answer.masks]
    covered = _pixels([mask["counts"] for _, mask in masks])
    broken = {
        answer.line: answer.pair.id
        for (answer, mask), pixels in zip(masks, covered, strict=True)
        if pixels != mask["size"][0] * mask["size"][1]
    }
    faults = [
        (n, f"line {n} has a mask that is no RLE of its size ({i})") for n, i in broken.items()
    ]
    return list(_rows([answer for answer in batch if answer.line not in broken], surface)), faults


def _rows(good: Sequence[_Answer], surface: _Surface | None) -> Iterator[Row]:
    found = [_union(answer.masks, answer.true["size"]) for answer in good]
    for answer, predicted, iou in zip(good, found, _box_ious(good), strict=True):
        said, pair = answer.said, answer.pair
        yield Row(
            pair=pair,
            overlap=_overlap(predicted, answer.true),
            box_iou=iou,
            named=bool(pair.labels) and set(pair.labels) <= _named(said["text"]),
            refused=said["refusal"] is not None or not answer.masks,
            score=said["findings"][0]["score"] if len(answer.masks) == 1 else None,
            findings=len(answer.masks),
            seconds=said.get("seconds", {}).get("wall"),
            memory=said.get("memory"),
            surface=None if surface is None else surface.dice(pair, predicted, answer.true),
        )


def _overlap(predicted: Runs, true: Runs) -> Overlap:
    both = coco.merge([predicted, true], intersect=True)
    return Overlap(*coco.area([both, predicted, true]).tolist())


def _box_ious(answers: Sequence[_Answer]) -> Iterator[float]:
    """IoU of the box around all boxes with the box around the truth; 0 when one is missing."""
    for start in range(0, len(answers), _BLOCK):
        block = answers[start : start + _BLOCK]
        nowhere = [[0.0] * 4]
        around = np.array([_around(answer.boxes or nowhere) for answer in block])
        trues = coco.toBbox([answer.true for answer in block])
        trues[:, 2:] += trues[:, :2]
        yield from np.diagonal(box_iou(around, trues)).tolist()


def _around(boxes: Sequence[Sequence[float]]) -> list[float]:
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return [min(x1), min(y1), max(x2), max(y2)]


def _pixels(masks: Sequence[bytes]) -> list[int]:
    """How many pixels each of COCO's compressed counts covers; -1 for what is no such code.

    Each run is written in groups of five bits, lowest first, the sixth bit telling that more
    follow; from the fourth run on it is the difference to the run two before it (rleToString in
    COCO's maskApi.c).
    """
    codes = np.frombuffer(b"".join(masks), np.uint8).astype(np.int64) - 48
    sizes = np.array([len(counts) for counts in masks])
    if not codes.size:
        return [-1] * len(masks)
    mask_of = np.repeat(np.arange(len(masks)), sizes)
    final = np.cumsum(sizes)[sizes > 0] - 1
    wrong = set(mask_of[(codes < 0) | (codes > 63)]) | set(mask_of[final[codes[final] & 32 > 0]])
    ends = np.flatnonzero(np.bincount(final, minlength=codes.size) | (codes & 32 == 0))
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    wrong |= set(mask_of[ends[lengths > _LONGEST]])
    shifts = 5 * np.minimum(np.arange(codes.size) - np.repeat(starts, lengths), _LONGEST)
    values = np.add.reduceat((codes & 31) << shifts, starts)
    sign = 5 * np.minimum(lengths, _LONGEST)
    values -= np.where(codes[ends] & 16, np.int64(1) << sign, 0)
    runs, negative = _undone(values, mask_of[ends], len(masks))
    wrong |= set(negative)
    return [-1 if n in wrong or not sizes[n] else int(run) for n, run in enumerate(runs)]


def _undone(
    values: NDArray[np.int64], mask_of: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sum of each mask's runs, from their differences, and which masks have a negative run."""
    first = np.searchsorted(mask_of, np.arange(count))
    place = np.arange(values.size) - first[mask_of]
    totals, negative = np.zeros(count, np.int64), []
    # The first run stands alone; the others are two interleaved chains of differences.
    for chain in (place == 0, place % 2 == 1, (place > 0) & (place % 2 == 0)):
        steps, of = values[chain], mask_of[chain]
        if not steps.size:
            continue
        heads = np.flatnonzero(np.append(True, of[1:] != of[:-1]))
        sums = np.cumsum(steps)
        before = np.repeat((sums - steps)[heads], np.diff(np.append(heads, steps.size)))
        runs = sums - before
        totals[of[heads]] += np.add.reduceat(runs, heads)
        negative.append(of[runs < 0])
    return totals, np.concatenate(negative)


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

    @classmethod
    def over(cls, pairs: Iterable[Pair], tolerance: float, spacings: Spacings) -> _Surface:
        """DataError where an image's spacing is not given."""
        missing = sorted({pair.image for pair in pairs} - spacings.keys())
        if missing:
            raise DataError(
                f"the spacing in mm of {len(missing)} images is not given, first {missing[0]}; "
                "name a file with --spacings"
            )
        return cls(tolerance, spacings)

    def dice(self, pair: Pair, predicted: Runs, true: Runs) -> float:
        """Of one pair's masks."""
        found, wanted = (coco.decode(runs).astype(bool) for runs in (predicted, true))
        return surface_dice(found, wanted, self.tolerance, self.spacings[pair.image])


@lru_cache(maxsize=65536)
def _named(text: str) -> frozenset[str]:
    return frozenset(entity.name for entity in load_entities().find(text))
