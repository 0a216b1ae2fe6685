"""One name for every class: the curated table behind what foreign data sets call things.

Names and synonyms of `medisee.entities` are the first source, `classes.yaml` adds what entities
lack. A raw name is compared as a set of folded words plus the patient's side, so that
"Kidney_Left", "left kidney" and "kidney (L)" are one, and "left" never becomes "right".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from medisee.entities import load_entities
from medisee.errors import DataError

__all__ = ["ClassTable", "CuratedClass", "body_part_of", "load_classes"]

_SIDES = {
    "left": "left", "l": "left", "lt": "left", "lft": "left", "sinister": "left",
    "right": "right", "r": "right", "rt": "right", "rgt": "right", "dexter": "right",
}  # fmt: skip
_FILLERS = frozenset(("a", "an", "and", "in", "of", "the"))
# Both sides of a comparison are folded alike, so the folds need not give English words.
_FOLDS = (("ae$", "a"), ("^oe|ae|oe", "e"), ("our", "or"), ("ies$", "y"), ("(?<=[^su])s$", ""))
_Key = tuple[str, frozenset[str]]


@dataclass(frozen=True)
class CuratedClass:
    """A class under its one name; `side` is the patient's ("left", "right") or ""."""

    name: str
    synonyms: tuple[str, ...] = ()
    side: str = ""
    codes: Mapping[str, str] = field(default_factory=dict, hash=False)
    body_parts: tuple[str, ...] = ()


class ClassTable:
    """All curated classes, found by any of their names or by SNOMED CT code and side."""

    def __init__(self, classes: Iterable[CuratedClass]) -> None:
        self._by_name = {entry.name: entry for entry in classes}
        self._by_key: dict[_Key, list[CuratedClass]] = {}
        self._by_code: dict[tuple[str, str], CuratedClass] = {}
        for entry in self._by_name.values():
            for key in dict.fromkeys(map(_key, (entry.name, *entry.synonyms))):
                self._by_key.setdefault(key, []).append(entry)
            if "snomed" in entry.codes:
                self._by_code.setdefault((entry.codes["snomed"], entry.side), entry)
        # A phrase that is somebody's own name is nobody else's synonym.
        own: dict[_Key, list[CuratedClass]] = {}
        for entry in self._by_name.values():
            own.setdefault(_key(entry.name), []).append(entry)
        if shared := [key for key, entries in own.items() if len(entries) > 1]:
            raise DataError(f"two curated classes have the same name: {own[shared[0]][0].name}")
        self._by_key.update(own)

    def __contains__(self, label: object) -> bool:
        return label in self._by_name

    def __iter__(self) -> Iterator[CuratedClass]:
        return iter(self._by_name.values())

    def __getitem__(self, label: str) -> CuratedClass:
        return self._by_name[label]

    def candidates(self, raw: str) -> tuple[CuratedClass, ...]:
        """The classes that `raw` may mean: none, one, or several that share the synonym."""
        return tuple(self._by_key.get(_key(raw), ()))

    def label(self, raw: str, context: str = "") -> str:
        """The one name for `raw`; a class that the table lacks keeps its words, tidied.

        context: what the data set is about ("liver", "lung"), for class names that mean little
        without it: "cancer" of a lung data set is a lung tumor. A name that several classes
        share is settled by the context, or stays as it is.
        """
        for text in (f"{context} {raw}", raw) if context else (raw,):
            found = self.candidates(text)
            if len(found) == 1:
                return found[0].name
        narrowed = [entry for entry in self.candidates(raw) if context in entry.body_parts]
        return narrowed[0].name if len(narrowed) == 1 else _tidy(raw)

    def by_code(self, snomed: str, side: str = "") -> CuratedClass | None:
        """The class of a SNOMED CT code; `side` as its modifier says, "" where there is none."""
        if entry := self._by_code.get((snomed, side)):
            return entry
        unsided = self._by_code.get((snomed, ""))
        found = self.candidates(f"{side} {unsided.name}") if unsided else ()
        return found[0] if len(found) == 1 else None


@lru_cache(maxsize=1)
def load_classes() -> ClassTable:
    """Entities and `classes.yaml` as one table, read once; DataError when the file is wrong."""
    text = resources.files(__package__).joinpath("classes.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    merged = {
        entity.name: CuratedClass(
            entity.name, entity.synonyms, entity.side or "", entity.codes, entity.body_parts
        )
        for entity in load_entities().values()
    }
    for entry in document["classes"]:
        for curated in _variants(entry):
            merged[curated.name] = _join(merged.get(curated.name), curated)
    for name, synonyms in document["synonyms"].items():
        if name not in merged:
            raise DataError(f"classes.yaml: synonyms of '{name}', which is no class")
        merged[name] = _join(merged[name], CuratedClass(name, tuple(synonyms)))
    return ClassTable(merged.values())


def body_part_of(labels: Iterable[str], table: ClassTable) -> str:
    """The body part that most of the labels lie in, by the table's order where several do."""
    votes: dict[str, list[int]] = {}
    for label in dict.fromkeys(labels):
        for rank, part in enumerate(table[label].body_parts if label in table else ()):
            votes.setdefault(part, []).append(rank)
    if not votes:
        return ""
    return min(votes, key=lambda part: (-len(votes[part]), sum(votes[part]), part))


def _variants(entry: dict[str, Any]) -> list[CuratedClass]:
    """The class of one entry of the file, and its left and right."""
    if odd := entry.keys() - {"name", "synonyms", "sides", "codes", "body_parts"}:
        raise DataError(f"classes.yaml: {entry['name']}: unknown keys: {', '.join(sorted(odd))}")
    name, synonyms = entry["name"], tuple(entry.get("synonyms", ()))
    codes, parts = entry.get("codes", {}), tuple(entry.get("body_parts", ()))
    given = next((side for side in ("left", "right") if f"{side} " in f"{name} "), "")
    classes = [CuratedClass(name, synonyms, given, codes, parts)]
    for side in ("left", "right") if entry.get("sides") else ():
        sided = tuple(f"{side} {synonym}" for synonym in synonyms)
        classes.append(CuratedClass(f"{side} {name}", sided, side, codes, parts))
    return classes


def _join(first: CuratedClass | None, second: CuratedClass) -> CuratedClass:
    """The first entry's facts, with what only the second one has."""
    if first is None:
        return second
    synonyms = tuple(dict.fromkeys((*first.synonyms, *second.synonyms)))
    codes = first.codes or second.codes
    return CuratedClass(
        first.name, synonyms, first.side, codes, first.body_parts or second.body_parts
    )


def _words(raw: str) -> list[str]:
    """Lower-case words and numbers; camelCase and underscores part words."""
    plain = unicodedata.normalize("NFKD", raw.replace("\u2019", "'"))
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    plain = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", plain).lower()
    return re.findall("[a-z0-9]+", re.sub(r"'s\b", "", plain))


def _sides_and_rest(raw: str) -> tuple[list[str], list[str]]:
    words = _words(raw)
    # "l" alone is a side; where left or right is written out, another "r" is not.
    written = [word for word in words if word in ("left", "right")]
    known = ("left", "right") if written else tuple(_SIDES)
    sides = list(dict.fromkeys(_SIDES[word] for word in words if word in known))
    return sides, [word for word in words if word not in known]


def _key(raw: str) -> _Key:
    sides, rest = _sides_and_rest(raw)
    return "+".join(sorted(sides)), frozenset(_fold(w) for w in rest if w not in _FILLERS)


@lru_cache(maxsize=8192)
def _fold(word: str) -> str:
    if word.isdigit():
        return str(int(word))
    if len(word) > 3:
        for pattern, plain in _FOLDS:
            word = re.sub(pattern, plain, word)
    return word


def _tidy(raw: str) -> str:
    """A name for a class that the table lacks: its words, the side in front."""
    sides, rest = _sides_and_rest(raw)
    return " ".join([*sides, *rest]) or "unnamed"
