"""The curated knowledge about everything that can be asked for, one YAML file per body region.

`load_entities()` is the one door. It reads the package's files once, checks them strictly and
returns a read-only mapping from name to `Entity`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from medisee.errors import DataError

__all__ = [
    "BODY_PARTS",
    "KINDS",
    "MODALITIES",
    "Entities",
    "Entity",
    "load_entities",
    "read_entities",
]

KINDS = frozenset(
    (
        "bone",
        "cavity",
        "cell",
        "device",
        "lesion",
        "muscle",
        "nerve",
        "organ",
        "region",
        "tissue",
        "vessel",
    )
)
BODY_PARTS = frozenset(
    (
        "abdomen",
        "blood smear",
        "brain",
        "brain (hippocampus region crop)",
        "breast",
        "cell",
        "cervical spine",
        "cervix",
        "chest",
        "colon",
        "fetal head",
        "foot",
        "gastrointestinal tract",
        "head and neck",
        "heart",
        "kidney",
        "larynx",
        "liver",
        "lumbar spine",
        "neck",
        "neural tissue",
        "optic nerve head",
        "prostate",
        "retina",
        "skin",
        "soft tissue of extremity or trunk",
        "spine",
        "teeth",
        "torso",
    )
)
MODALITIES = frozenset(
    (
        "CT",
        "MR",
        "MR-FLAIR",
        "MR-T1",
        "MR-T1/T2* fusion",
        "MR-T1Gd",
        "MR-T2",
        "MR-T2*",
        "MR-cine",
        "MR-water-fat",
        "OCT",
        "PET",
        "X-ray",
        "dermoscopy",
        "endoscopy",
        "fundus",
        "mammography",
        "microscopy",
        "photo",
        "ultrasound",
    )
)

_OFF_TOPIC = "off_topic.yaml"  # questions without an entity; the data engine reads them
_SIDES = ("left", "right")
_ARTICLES = frozenset(("a", "an", "the"))
_SIDELESS = _ARTICLES.union(_SIDES)
_SINGULARS = {"axes": "axis", "ganglia": "ganglion", "larynges": "larynx", "teeth": "tooth"}
_BRITISH = (("our$", "or"), ("^oe", "e"), ("aem", "em"), ("^grey$", "gray"), ("^centre$", "center"))
_PLURALS = (
    ("ies$", "y"),
    ("(ss|x|ch|sh)es$", r"\1"),
    ("ae$", "a"),
    ("([a-z]{3})i$", r"\1us"),
    ("([^siu])s$", r"\1"),
)
_ENDINGS = re.compile("(?:us|um|is|le|a|e|y)$")


@dataclass(frozen=True)
class Entity:
    """One anatomical structure, lesion, cell or device that can be asked for.

    `side` is the patient's ("left", "right") or None; `body_parts` and `modalities` say where it
    can be seen; `descriptions` are noun phrases and `questions` whole sentences, and neither ever
    names the entity; `explanation` is three sentences that do.
    """

    name: str
    synonyms: tuple[str, ...]
    side: str | None
    kind: str
    body_parts: tuple[str, ...]
    modalities: tuple[str, ...]
    codes: Mapping[str, str] = field(hash=False)
    explanation: tuple[str, ...]
    descriptions: tuple[str, ...]
    questions: tuple[str, ...]

    @property
    def terms(self) -> tuple[str, ...]:
        """The name, then the synonyms."""
        return (self.name, *self.synonyms)

    def is_named_in(self, text: str) -> bool:
        """Whether `text` gives the entity away.

        Counts the name and every synonym as whole words, their inflections ("kidneys",
        "pancreatic") and their side-less forms ("kidney" for "left kidney").
        """
        return _leak_pattern(self.terms).search(_normalise(text, sides=False)) is not None


class Entities(Mapping[str, Entity]):
    """Every entity by its name, in the order of the files."""

    def __init__(self, entities: Iterable[Entity]) -> None:
        self._by_name = {entity.name: entity for entity in entities}
        self._by_term: dict[str, list[Entity]] = {}
        for entity in self._by_name.values():
            for term in dict.fromkeys(map(_normalise, entity.terms)):
                self._by_term.setdefault(term, []).append(entity)
        # A phrase that is somebody's own name is nobody else's synonym.
        self._by_term.update({_normalise(e.name): [e] for e in self._by_name.values()})
        self._longest = max((len(term.split()) for term in self._by_term), default=0)

    def __getitem__(self, name: str) -> Entity:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, text: str) -> list[Entity]:
        """The entities whose name or synonym occurs in `text`, longest match first.

        Whole words only; case, plural and article do not matter. Of matches that overlap the
        longest counts. A phrase that several entities share as a synonym finds all of them.
        """
        taken: set[int] = set()
        found: dict[str, Entity] = {}
        matches = self._matches(_normalise(text).split())
        for term, start in sorted(matches, key=lambda match: (-len(match[0]), match[1])):
            places = range(start, start + len(term.split()))
            if taken.isdisjoint(places):
                taken.update(places)
                found.update({entity.name: entity for entity in self._by_term[term]})
        return list(found.values())

    def _matches(self, words: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Every run of words that is a term, and the place of its first word."""
        for start in range(len(words)):
            for end in range(start + 1, min(start + self._longest, len(words)) + 1):
                if (term := " ".join(words[start:end])) in self._by_term:
                    yield term, start


@lru_cache(maxsize=1)
def load_entities() -> Entities:
    """Reads and checks every YAML file of the package, once.

    Raises DataError naming file, entity and sentence when a file breaks the schema, when a name
    occurs twice, or when a description or question names its own entity.
    """
    entities: dict[str, Entity] = {}
    for file in sorted(resources.files(__name__).iterdir(), key=lambda item: item.name):
        if file.name.endswith(".yaml") and file.name != _OFF_TOPIC:
            for entity in _read(file.read_text(encoding="utf-8"), file.name):
                if entity.name in entities:
                    raise DataError(f"{file.name}: the entity '{entity.name}' occurs twice")
                entities[entity.name] = entity
    return Entities(entities.values())


def read_entities(path: Path) -> list[Entity]:
    """The entities of a file in the form of the package's own.

    Raises DataError as `load_entities` does, and when the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text") from error
    return _read(text, path.name)


def _read(text: str, file: str) -> list[Entity]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # C is ten times as fast
    try:
        entries = yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        raise DataError(f"{file}: is not valid YAML: {error}") from error
    if not isinstance(entries, list):
        raise DataError(f"{file}: must hold a list of entities")
    return [_entity(entry, file) for entry in entries]


def _entity(entry: Any, file: str) -> Entity:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise DataError(f"{file}: every entity must be a mapping with a name")
    where = f"{file}: {entry['name']}"
    known = {f.name for f in fields(Entity)}
    if odd := sorted(map(str, entry.keys() ^ known)):
        raise DataError(f"{where}: keys missing or unknown: {', '.join(odd)}")
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()
    }
    _check_values(values, where)
    entity = Entity(**values)
    _check_sentences(entity, where)
    return entity


def _check_values(values: Mapping[str, Any], where: str) -> None:
    for key in ("synonyms", "body_parts", "modalities", "explanation", "descriptions", "questions"):
        items = values[key]
        if not isinstance(items, tuple) or not all(isinstance(i, str) and i for i in items):
            raise DataError(f"{where}: {key} must be a list of texts")
        if len(set(items)) < len(items):
            raise DataError(f"{where}: {key} holds an item twice")
        if not items and key != "synonyms":
            raise DataError(f"{where}: {key} is empty")
    if values["side"] not in (None, *_SIDES) or values["kind"] not in KINDS:
        raise DataError(f"{where}: side '{values['side']}' or kind '{values['kind']}' is unknown")
    odd = {*values["body_parts"]} - BODY_PARTS | {*values["modalities"]} - MODALITIES
    if odd:
        raise DataError(f"{where}: unknown body parts or modalities: {', '.join(sorted(odd))}")
    codes = values["codes"]
    if not isinstance(codes, dict) or not all(isinstance(c, str) for c in codes.values()):
        raise DataError(f"{where}: codes must map a system to a code in quotes")


def _check_sentences(entity: Entity, where: str) -> None:
    for sentence in (*entity.descriptions, *entity.questions):
        if entity.is_named_in(sentence):
            raise DataError(f"{where}: this sentence names it: '{sentence}'")
    if len(entity.explanation) != 3:
        raise DataError(f"{where}: the explanation must be three sentences")
    for sentence in entity.explanation:
        if not entity.is_named_in(sentence):
            raise DataError(f"{where}: this explanation must name it: '{sentence}'")


def _normalise(text: str, sides: bool = True) -> str:
    """Lower-case American singulars without articles, one blank between the words."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("\u2019", "'"))
    if not plain.isascii():  # most texts are, and this is what takes its time
        plain = "".join(c for c in plain if not unicodedata.combining(c))
    words = re.findall("[a-z0-9]+", re.sub(r"'s\b", "", plain))
    dropped = _ARTICLES if sides else _SIDELESS
    # Numbers would fill the cache of singulars, and have none.
    kept = (word for word in words if word not in dropped)
    return " ".join(word if word.isdigit() else _singular(word) for word in kept)


@lru_cache(maxsize=16384)
def _singular(word: str) -> str:
    for british, american in _BRITISH:
        word = re.sub(british, american, word)
    if word in _SINGULARS:
        return _SINGULARS[word]
    for plural, singular in _PLURALS:
        if len(word) > 3 and re.search(plural, word):
            return re.sub(plural, singular, word)
    return word


@lru_cache(maxsize=4096)
def _leak_pattern(terms: tuple[str, ...]) -> re.Pattern[str]:
    phrases = dict.fromkeys(_normalise(term, sides=False) for term in terms)
    inflected = "|".join(" ".join(map(_inflected, p.split())) for p in phrases if p)
    return re.compile(rf"\b(?:{inflected})\b")


def _inflected(word: str) -> str:
    """A pattern for the word and what is built on its stem, where that is long enough to tell."""
    stem = _ENDINGS.sub("", word)
    if len(stem) < 4 or (stem == word and len(word) < 5):
        return re.escape(word)
    return rf"{re.escape(stem)}\w*"
