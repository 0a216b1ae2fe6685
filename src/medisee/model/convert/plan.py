"""Which stored tensor becomes which of ours: everything is settled before any number is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ...errors import ModelError
from .files import WeightFile
from .names import LORA, SOURCES, Source, known, plain_name, recognise
from .sizes import PROJECTOR, Shapes


@dataclass(frozen=True)
class Place:
    """Where a tensor is stored: file and name in it."""

    file: Path
    name: str


@dataclass(frozen=True)
class Piece:
    """One of our tensors.

    Attributes:
        shape: as it will be.
        place: where it is stored; None for one that is made.
        lora: LoRA's A and B, where they were kept apart.
        make: makes it; without, it is zeros.
        new_rows: rows that a grown vocabulary adds at the end: the mean of the others.
    """

    shape: tuple[int, ...]
    place: Place | None = None
    lora: tuple[Place, Place] | None = None
    make: Callable[[], Tensor] | None = None
    new_rows: int = 0

    def load(self, files: Mapping[Path, WeightFile], scale: float) -> Tensor:
        """The tensor, in its stored precision.

        Args:
            scale: LoRA's alpha; divided by the rank, it weighs the product.
        """
        if self.place is None:
            return self.make() if self.make else torch.zeros(self.shape)
        value = files[self.place.file].tensor(self.place.name)
        if self.lora is not None:
            first, second = (files[p.file].tensor(p.name).float() for p in self.lora)
            product = second @ first * (scale / first.shape[0])
            value = (value.float() + product).to(value.dtype)
        if self.new_rows:
            mean = value.float().mean(dim=0, keepdim=True).to(value.dtype)
            value = torch.cat([value, mean.expand(self.new_rows, -1)])
        return value


@dataclass
class Plan:
    """All pieces by our names, the sources that they come from, and what was left out."""

    sources: list[Source]
    pieces: dict[str, Piece]
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> Shapes:
        """Our names and shapes."""
        return {name: piece.shape for name, piece in self.pieces.items()}

    def source(self, part: str) -> Source | None:
        """The source that gave `part` ("whole", "mllm", "segmenter", "tower")."""
        return next((source for source in self.sources if source.part == part), None)


def make_plan(files: Mapping[Path, WeightFile]) -> Plan:
    """Recognises what the files hold and gives each tensor its place.

    Raises:
        ModelError: nothing known, unknown keys, or more than one checkpoint.
    """
    used, notes = _checkpoint_files(files)
    places = {place: plain_name(place.name) for place in _places(used, files)}
    plan = Plan(recognise(dict.fromkeys(places.values())), {}, notes=notes)
    tower = plan.source("tower")
    loras: dict[str, dict[str, Place]] = defaultdict(dict)
    beside = {p: names for p, n in places.items() if tower and (names := tower.translate(n))}
    for place, names in beside.items():
        _add(plan, place, names, files)
    # A tower given apart takes the place of one that came inside another file.
    given = set(plan.pieces)
    for place, name in places.items():
        if lora := LORA.match(name):
            loras[f"{lora[1]}.weight"][lora[2]] = place
        elif place not in beside:
            found = tuple(ours for ours in _translate(plan, place, name) if ours not in given)
            _add(plan, place, found, files)
    for name, pair in loras.items():
        _add_lora(plan, name, pair)
    if plan.sources[0].name == "lisa":
        _add_identity(plan)
    return plan


def _places(paths: Iterable[Path], files: Mapping[Path, WeightFile]) -> list[Place]:
    return [Place(path, name) for path in paths for name in files[path].shapes]


def _checkpoint_files(files: Mapping[Path, WeightFile]) -> tuple[list[Path], list[str]]:
    """The files that make up the checkpoint, and notes on those left aside.

    A file without a single known key is data of another kind. Where a folder holds the same
    weights merged and with LoRA apart, the merged ones are taken.
    """
    used = [p for p in files if any(known(plain_name(name)) for name in files[p].shapes)]
    strange = [path.name for path in files if path not in used]
    if not used:
        used, strange = list(files), []
    notes = [f"left aside, no weights under known names: {name}" for name in strange]
    adapted = [p for p in used if any(LORA.match(plain_name(n)) for n in files[p].shapes)]
    merged = [path for path in used if path not in adapted]
    names = {plain_name(place.name) for place in _places(merged, files)}
    again = {plain_name(p.name) for p in _places(adapted, files) if not LORA.match(p.name)}
    if adapted and again <= names:
        notes += [f"left aside, the same weights before merging: {p.name}" for p in adapted]
        used = merged
    return used, notes


def _add(plan: Plan, place: Place, ours: tuple[str, ...], files: Mapping[Path, WeightFile]) -> None:
    if not ours:
        plan.dropped.append(place.name)
    for name in ours:
        earlier = plan.pieces.get(name)
        if earlier is not None and earlier.place is not None:
            raise ModelError(
                f"mixed checkpoints: {place.name} in {place.file.name} is in "
                f"{earlier.place.file.name} too; give the files of one checkpoint only"
            )
        plan.pieces[name] = Piece(files[place.file].shapes[place.name], place)


def _translate(plan: Plan, place: Place, name: str) -> tuple[str, ...]:
    for source in plan.sources:
        if (names := source.translate(name)) is not None:
            return names
    titles = " and ".join(source.title for source in plan.sources)
    other = next((s.title for s in SOURCES if s.translate(name) is not None), None)
    if other is not None:
        raise ModelError(
            f"mixed checkpoints: {place.name} in {place.file.name} is of {other}, "
            f"the rest is {titles}; give the files of one checkpoint only"
        )
    raise ModelError(f"unknown key {place.name} in {place.file.name}: {titles} has no such weight")


def _add_lora(plan: Plan, name: str, pair: Mapping[str, Place]) -> None:
    ours = next((n for s in plan.sources if (n := s.translate(name))), ())
    if len(pair) < 2 or not ours or ours[0] not in plan.pieces:
        raise ModelError(
            f"LoRA of {name} is incomplete: expected lora_A, lora_B and the weight itself"
        )
    piece = plan.pieces[ours[0]]
    plan.pieces[ours[0]] = replace(piece, lora=(pair["A"], pair["B"]))


def _add_identity(plan: Plan) -> None:
    """The second matrix of a projector that had only one."""
    first = plan.pieces.get(f"{PROJECTOR}linear_1.bias")
    if first is not None:
        width = first.shape[0]
        plan.pieces[f"{PROJECTOR}linear_2.weight"] = Piece(
            (width, width), make=lambda: torch.eye(width)
        )
        plan.pieces[f"{PROJECTOR}linear_2.bias"] = Piece((width,))


def check_fit(found: Shapes, expected: Shapes, said: Sequence[str] = ()) -> None:
    """Every name and every shape must be there, and nothing else.

    Raises:
        ModelError: the first that is missing, too much, or of another shape than expected.
    """
    hint = f" ({'; '.join(said)})" if said else ""
    if missing := sorted(expected.keys() - found.keys()):
        raise ModelError(
            f"the checkpoint is incomplete: {len(missing)} weights are missing, first "
            f"{missing[0]} {list(expected[missing[0]])}{hint}"
        )
    if extra := sorted(found.keys() - expected.keys()):
        raise ModelError(
            f"unknown weights: {len(extra)} have no place in the model, first {extra[0]}{hint}"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise ModelError(f"{name} has shape {list(found[name])}, expected {list(shape)}{hint}")
