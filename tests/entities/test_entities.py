from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medisee import entities as door
from medisee.entities import Entities, Entity, load_entities
from medisee.errors import DataError

ENTITIES = load_entities()


def entity(name: str, *synonyms: str, side: str | None = None) -> Entity:
    texts = ("the thing",)
    return Entity(
        name, synonyms, side, "organ", ("abdomen",), ("CT",), {}, (f"The {name} is.",), texts, texts
    )


SOME = Entities(
    (
        entity("left kidney", side="left"),
        entity("right kidney", side="right"),
        entity("vertebra"),
        entity("L1 vertebra", "first lumbar vertebra"),
        entity("pancreas"),
        entity("left ventricle of heart", "left ventricle", "LV"),
        entity("tumor core", "tumor"),
        entity("whole tumor", "tumor"),
        entity("esophagus"),
    )
)


def names(text: str) -> list[str]:
    return [found.name for found in SOME.find(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Segment the LEFT KIDNEY, please.", ["left kidney"]),
        ("left kidneys", ["left kidney"]),
        ("the left ventricle of the heart", ["left ventricle of heart"]),
        ("where's the LV?", ["left ventricle of heart"]),
        ("show vertebrae", ["vertebra"]),
        ("the first lumbar vertebra", ["L1 vertebra"]),
        ("the oesophagus", ["esophagus"]),
        ("pancreas and the right kidney", ["right kidney", "pancreas"]),
        ("the tumour", ["tumor core", "whole tumor"]),
        ("the kidney", []),
        ("lvad", []),
        ("", []),
    ],
)
def test_find(text: str, expected: list[str]) -> None:
    assert names(text) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("left kidney", "the kidney on the left"),
        ("left kidney", "both kidneys'"),
        ("pancreas", "a pancreatic duct"),
        ("esophagus", "the Oesophageal wall"),
        ("L1 vertebra", "the first left lumbar vertebra"),
        ("left ventricle of heart", "a ventricular chamber"),
    ],
)
def test_leaks_are_caught(name: str, text: str) -> None:
    assert SOME[name].is_named_in(text)


@pytest.mark.parametrize(
    ("name", "text"), [("pancreas", "the pancake"), ("L1 vertebra", "the one below the ribs")]
)
def test_innocent_text_passes(name: str, text: str) -> None:
    assert not SOME[name].is_named_in(text)


@given(st.text())
def test_any_text_is_searched(text: str) -> None:
    assert len(set(names(text))) == len(names(text))


@pytest.mark.parametrize("name", list(ENTITIES))
def test_every_name_finds_its_entity_and_no_sentence_leaks(name: str) -> None:
    shipped = ENTITIES[name]
    assert ENTITIES.find(f"Outline the {name}.") == [shipped]
    assert not any(map(shipped.is_named_in, shipped.descriptions + shipped.questions))
    assert all(shipped in ENTITIES.find(term) or term in ENTITIES for term in shipped.synonyms)


@pytest.mark.parametrize("name", [n for n, e in ENTITIES.items() if e.side])
def test_sided_entities_say_their_side(name: str) -> None:
    shipped = ENTITIES[name]
    side = re.compile(rf"\b{shipped.side}", re.IGNORECASE)
    silent = [s for s in shipped.descriptions + shipped.questions if not side.search(s)]
    assert not silent


def test_entities_are_loaded_once_and_cannot_be_changed() -> None:
    assert load_entities() is ENTITIES
    with pytest.raises(dataclasses.FrozenInstanceError):
        next(iter(ENTITIES.values())).name = "other"  # type: ignore[misc]


GOOD = """
- name: spleen
  synonyms: [lien]
  side: null
  kind: organ
  body_parts: [abdomen]
  modalities: [CT]
  codes: {}
  explanation: [The spleen is soft., The spleen is purple., The spleen filters blood.]
  descriptions: [the organ that filters blood]
  questions: [Which organ filters blood?]
"""


def test_a_good_file_is_read() -> None:
    assert door._read(GOOD, "good.yaml")[0].terms == ("spleen", "lien")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  kind: organ\n", "", "kind"),
        ("  side: null\n", "  side: null\n  colour: purple\n", "colour"),
        ("side: null", "side: up", "side 'up'"),
        ("[CT]", "[CTT]", "CTT"),
        ("[abdomen]", "[tummy]", "tummy"),
        ("[lien]", "lien", "synonyms"),
        ("codes: {}", "codes: {snomed: 5}", "codes"),
        ("the organ that filters", "the lien that filters", "the lien that filters blood"),
        ("Which organ", "Which spleens", "Which spleens filters blood"),
        ("The spleen is purple., ", "", "three sentences"),
        ("The spleen is purple.", "It is purple.", "It is purple"),
        ("- name: spleen", "- nom: spleen", "name"),
        ("- name", "  - - name", "valid YAML"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(old: str, new: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as error:
        door._read(GOOD.replace(old, new), "bad.yaml")
    assert "bad.yaml" in str(error.value)
