"""What a finding is, in SNOMED CT and DICOM codes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from medisee.entities import Entity, load_entities

__all__ = ["Coding", "code_finding"]

_SIDES = {"left": ("7771000", "Left"), "right": ("24028007", "Right")}
_CATEGORIES = {
    "lesion": ("49755003", "Morphologically Abnormal Structure"),
    "device": ("260787004", "Physical object"),
}
_ANATOMY = ("91723000", "Anatomical Structure")
_KINDS = {
    "bone": ("272673000", "Bone"),
    "cavity": ("91806002", "Body cavity"),
    "cell": ("4421005", "Cell"),
    "device": ("260787004", "Physical object"),
    "lesion": ("52988006", "Lesion"),
    "muscle": ("71616004", "Muscle"),
    "nerve": ("91728009", "Nerve"),
    "organ": ("91772007", "Organ"),
    "region": _ANATOMY,
    "tissue": ("85756007", "Tissue"),
    "vessel": ("59820001", "Blood Vessel"),
}
"""Kind of an entity -> the type of those that have no code of their own."""


@dataclass(frozen=True)
class Coding:
    """Category, type and side of a segment, as pydicom codes (DICOM CID 7150, 7151, 244)."""

    category: Any
    type: Any
    side: Any = None


def code_finding(label: str | None) -> Coding:
    """The codes of the entity of that name; a plain image region where there is none.

    An entity without a SNOMED CT code is coded as its kind, such as "Lesion": its name stays in
    the segment's label.
    """
    from pydicom.sr.coding import Code

    def sct(code: tuple[str, str]) -> Any:
        return Code(code[0], "SCT", code[1])

    entity = load_entities().get(label or "")
    if entity is None:
        category = sct(("309825002", "Spatial and Relational Concept"))
        return Coding(category, Code("111030", "DCM", "Image Region"))
    return Coding(
        category=sct(_CATEGORIES.get(entity.kind, _ANATOMY)),
        type=sct(_type_of(entity)),
        side=sct(_SIDES[entity.side]) if entity.side else None,
    )


def _type_of(entity: Entity) -> tuple[str, str]:
    code = entity.codes.get("snomed")
    return _KINDS[entity.kind] if code is None else (code, _meaning(code) or entity.name[:64])


def _meaning(code: str) -> str | None:
    """The standard's own words for a code, without SNOMED's remark on what it is one of."""
    words = _standard_words().get(code)
    return None if words is None else words.split(" (")[0][:64]


@lru_cache(maxsize=1)
def _standard_words() -> dict[str, str]:
    from pydicom.sr.codedict import Collection

    return {code.value: code.meaning for code in Collection("SCT").concepts.values()}
