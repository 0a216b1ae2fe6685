"""Rules as code: what can be absent, which wordings are kept for validation, what a question leaks.

What is not labelled may still be in the image. So an entity counts as absent only where the body
part (or the kind of image) excludes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, TypeVar

import yaml

from medisee.data.sa_med2d import ImageRecord
from medisee.entities import Entity
from medisee.structures import RefusalReason

__all__ = [
    "absent_entities",
    "elsewhere",
    "family",
    "leaks",
    "limit_questions",
    "read_yaml",
    "reserved_share",
]

T = TypeVar("T")

_EYE = {"retina", "optic nerve head"}
_HEAD = {"brain", "brain (hippocampus region crop)", "head and neck", "teeth"} | _EYE
_NECK = {"neck", "larynx", "cervical spine", "head and neck", "spine", "torso"}
_CHEST = {"chest", "heart", "breast", "torso", "spine"}
_ABDOMEN = {"abdomen", "liver", "kidney", "colon", "prostate", "gastrointestinal tract", "torso"}
_BACK = {"spine", "lumbar spine", "cervical spine", "torso"}
_SURFACE = {"skin", "foot", "soft tissue of extremity or trunk"}

# Body parts that may be in view, wholly or at the edge, in an image of the given one.
_MAY_SHOW: Mapping[str, set[str]] = {
    "abdomen": _ABDOMEN | _CHEST | _BACK | {"soft tissue of extremity or trunk"},
    "blood smear": {"blood smear", "cell"},
    "brain": _HEAD | {"cervical spine", "neck", "spine", "fetal head"},
    "brain (hippocampus region crop)": _HEAD | {"fetal head"},
    "breast": _CHEST | {"skin", "soft tissue of extremity or trunk"},
    "cell": {"cell", "blood smear", "cervix", "neural tissue", "prostate", "colon", "kidney"},
    "cervical spine": _NECK | _HEAD | _BACK | {"chest"},
    "cervix": {"cervix", "cell"},
    "chest": _CHEST | _ABDOMEN | _BACK | _NECK | {"soft tissue of extremity or trunk"},
    "colon": {"colon", "gastrointestinal tract", "cell", "prostate"},
    "fetal head": _HEAD | {"fetal head", "cervical spine", "spine"},
    "foot": _SURFACE,
    "gastrointestinal tract": {"gastrointestinal tract", "colon", "larynx"},
    "head and neck": _HEAD | _NECK | {"chest", "skin", "soft tissue of extremity or trunk"},
    "heart": _CHEST | _ABDOMEN | _BACK | {"soft tissue of extremity or trunk"},
    "kidney": {"kidney", "cell"},
    "larynx": {"larynx", "neck", "head and neck", "gastrointestinal tract"},
    "liver": _ABDOMEN | _CHEST | {"lumbar spine", "soft tissue of extremity or trunk"},
    "lumbar spine": _BACK | _ABDOMEN | {"soft tissue of extremity or trunk"},
    "neck": _NECK | {"chest", "soft tissue of extremity or trunk", "skin"},
    "neural tissue": {"neural tissue", "cell", "brain"},
    "optic nerve head": _EYE,
    "prostate": {"prostate", "cell", "colon", "abdomen", "torso"},
    "retina": _EYE,
    "skin": _SURFACE,
    "soft tissue of extremity or trunk": _SURFACE | _CHEST | _ABDOMEN | _BACK | {"neck"},
    "spine": _BACK | _NECK | _ABDOMEN | _CHEST | {"brain", "soft tissue of extremity or trunk"},
    "teeth": {"teeth", "head and neck", "neck", "cervical spine"},
    "torso": _CHEST | _ABDOMEN | _BACK | _NECK | {"soft tissue of extremity or trunk"},
}
# "torso" stands in many entities' lists beside the region that they really belong to.
_VAGUE = {"torso", "soft tissue of extremity or trunk"}
# The camera in a tube sees the tube: these are in front of it although their region is not named.
_HOLLOW = frozenset(
    ("colon", "small bowel", "duodenum", "stomach", "esophagus", "surgical instrument")
)
# Tubes, probes and catheters can turn up anywhere.
_ANYWHERE = frozenset(("device",))
RESERVED_EVERY = 3
"""One in so many wordings is kept for val and test: they test the wording too."""


def reserved_share(items: Sequence[T], split: str) -> Sequence[T]:
    """The wordings that `split` may use.

    Every third item (index 2, 5, 8...) belongs to val and test, all others to train.
    """
    reserved = split != "train"
    return [
        item
        for number, item in enumerate(items)
        if (number % RESERVED_EVERY == RESERVED_EVERY - 1) == reserved
    ]


def family(modality: str) -> str:
    """The kind of machine: "MR-T1" -> "MR"; the others are their own family."""
    return modality.split("-")[0] if modality.startswith("MR") else modality


def leaks(question: str, entities: Iterable[Entity]) -> bool:
    """Whether an implicit question gives one of its targets away by name."""
    return any(entity.is_named_in(question) for entity in entities)


def absent_entities(
    image: ImageRecord, entities: Iterable[Entity]
) -> dict[RefusalReason, list[Entity]]:
    """The entities that cannot be seen in the image, by reason; nothing that might be there."""
    found: dict[RefusalReason, list[Entity]] = {
        RefusalReason.NOT_IN_VIEW: [],
        RefusalReason.WRONG_MODALITY: [],
    }
    present = {*image.labels}
    for entity in entities:
        if entity.name not in present and (reason := _absence(image, entity)) is not None:
            found[reason].append(entity)
    return found


def _absence(image: ImageRecord, entity: Entity) -> RefusalReason | None:
    shown = family(image.modality)
    visible_in = {family(modality) for modality in entity.modalities}
    for reason in (RefusalReason.NOT_IN_VIEW, RefusalReason.WRONG_MODALITY):
        if entity.name in _limited(reason.value, shown, image.body_part):
            return reason
    if visible_in == {"microscopy"} and shown != "microscopy":
        return RefusalReason.WRONG_MODALITY
    if entity.kind in _ANYWHERE or (shown == "endoscopy" and entity.name in _HOLLOW):
        return None
    if image.body_part not in _MAY_SHOW:
        return None
    may_show = _MAY_SHOW[image.body_part]
    own = {*entity.body_parts} - _VAGUE or {*entity.body_parts}
    if shown == "endoscopy" or (shown == "microscopy" and "microscopy" not in visible_in):
        # Such images show one inner surface or one small piece of tissue.
        may_show = {image.body_part}
    return None if own & may_show else RefusalReason.NOT_IN_VIEW


@lru_cache(maxsize=1)
def elsewhere() -> tuple[Entity, ...]:
    """Structures that are asked for only where they cannot be in view."""
    return tuple(
        Entity(
            name=entry["name"],
            synonyms=tuple(entry["synonyms"]),
            side=None,
            kind="organ",
            body_parts=tuple(entry["body_parts"]),
            modalities=("CT", "MR", "ultrasound"),
            codes={},
            explanation=(),
            descriptions=tuple(entry["descriptions"]),
            questions=tuple(entry["questions"]),
        )
        for entry in read_yaml("medisee.engine", "elsewhere.yaml")
    )


def limit_questions(image: ImageRecord, split: str) -> list[tuple[str, str]]:
    """Requests that this kind of image cannot satisfy, each with the because of its refusal."""
    return [
        (question, group["because"])
        for group in read_yaml("medisee.engine", "limits.yaml")["questions"]
        if family(image.modality) in group["families"]
        for question in reserved_share(group["ask"], split)
    ]


@lru_cache(maxsize=256)
def _limited(reason: str, shown: str, body_part: str) -> frozenset[str]:
    return frozenset(
        name
        for group in read_yaml("medisee.engine", "limits.yaml")[reason]
        if shown in (group["families"] or [shown])
        and body_part in (group["body_parts"] or [body_part])
        for name in group["names"]
    )


@lru_cache(maxsize=8)
def read_yaml(package: str, file: str) -> Any:
    """A YAML file of the package, read once."""
    text = (resources.files(package) / file).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
