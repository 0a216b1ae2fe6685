from __future__ import annotations

import pytest

from medisee.data.sa_med2d import ImageRecord, MaskFile
from medisee.engine import rules
from medisee.entities import load_entities
from medisee.structures import RefusalReason

NOT_IN_VIEW, WRONG = RefusalReason.NOT_IN_VIEW, RefusalReason.WRONG_MODALITY


def image(modality, body_part, *labels):
    masks = tuple(MaskFile(f"{label}.png", label) for label in labels)
    return ImageRecord("x.png", masks, modality=modality, body_part=body_part, split="train")


def names(record, reason):
    return {e.name for e in rules.absent_entities(record, load_entities().values())[reason]}


@pytest.mark.parametrize(
    ("modality", "body_part", "reason", "inside", "outside"),
    [
        ("CT", "abdomen", NOT_IN_VIEW, "optic disc", "left lung"),
        ("CT", "abdomen", NOT_IN_VIEW, "foot ulcer", "esophagus"),
        ("MR-FLAIR", "brain", NOT_IN_VIEW, "liver", "brainstem"),
        ("fundus", "retina", NOT_IN_VIEW, "aorta", "hard exudate"),
        ("X-ray", "chest", WRONG, "left kidney", "liver"),
        ("CT", "abdomen", WRONG, "white blood cell", "spleen"),
        ("microscopy", "blood smear", NOT_IN_VIEW, "spleen", "cell nucleus"),
        ("endoscopy", "colon", NOT_IN_VIEW, "optic disc", "colon"),
        ("MR-cine", "heart", NOT_IN_VIEW, "mandible", "liver"),
    ],
)
def test_what_can_be_absent(modality, body_part, reason, inside, outside):
    found = names(image(modality, body_part), reason)
    assert inside in found
    assert outside not in names(image(modality, body_part), NOT_IN_VIEW)
    assert outside not in names(image(modality, body_part), WRONG)


def test_labelled_structures_are_never_absent(shared):
    from medisee.data.sa_med2d import Index

    for record in Index.open(shared / "data"):
        absent = names(record, NOT_IN_VIEW) | names(record, WRONG)
        assert not absent & {*record.labels}


def test_what_occurs_with_a_body_part_is_never_absent_there(shared):
    """Unlabelled is not absent: whatever is labelled on some image of a modality and body part."""
    from medisee.data.sa_med2d import Index

    labels: dict[tuple[str, str], set[str]] = {}
    for record in Index.open(shared / "data"):
        key = (record.modality, record.body_part)
        labels.setdefault(key, set()).update(record.labels)
    for (modality, body_part), seen in labels.items():
        bare = image(modality, body_part)
        assert not seen & (names(bare, NOT_IN_VIEW) | names(bare, WRONG)), (modality, body_part)


def test_elsewhere_is_well_formed():
    for entity in rules.elsewhere():
        for text in (*entity.descriptions, *entity.questions):
            assert not entity.is_named_in(text), text
        assert entity.name not in load_entities()


def test_limits_name_known_entities():
    limits = rules.read_yaml("medisee.engine", "limits.yaml")
    groups = [*limits["not_in_view"], *limits["wrong_modality"]]
    assert {name for group in groups for name in group["names"]} <= load_entities().keys()


def test_reserved_share_splits():
    items = list(range(13))
    train, val = rules.reserved_share(items, "train"), rules.reserved_share(items, "val")
    assert val == [2, 5, 8, 11] and rules.reserved_share(items, "test") == val
    assert sorted([*train, *val]) == items


def test_family():
    assert rules.family("MR-T1/T2* fusion") == "MR" and rules.family("CT") == "CT"
