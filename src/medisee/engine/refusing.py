"""Questions that have no right target in the image, and the refusals that answer them."""

from __future__ import annotations

import re

from medisee.engine import language, rules
from medisee.engine.scene import Draft, Scene, agree, wordings
from medisee.engine.single import implicit_question, name_question
from medisee.entities import Entity
from medisee.structures import RefusalReason

__all__ = ["absent", "off_topic"]

_RARE = 0.25  # weight of a structure without training images: as one with 16 of them
_REASONS = {
    RefusalReason.NOT_IN_VIEW: 0.48,
    RefusalReason.WRONG_MODALITY: 0.22,
    RefusalReason.NOT_MEDICAL: 0.15,
    RefusalReason.UNCLEAR: 0.15,
}
# An implicit question about looks alone may fit something else in an image without its target.
_LOOKS = re.compile(
    r"\b(bright|dark|white|black|gr[ae]y|pale|red|shad\w*|spots?|dots?|blobs?|patch(es)?|round|oval"
    r"|circles?|lines?|streaks?|bands?|rings?|zone|area|abnormal|lump|mass|growth)\b",
    re.IGNORECASE,
)


def absent(scene: Scene) -> Draft | None:
    """A question that has no right target in this image."""
    reason = scene.rng.choices(list(_REASONS), list(_REASONS.values()))[0]
    if reason in (RefusalReason.NOT_MEDICAL, RefusalReason.UNCLEAR):
        return off_topic(scene, reason)
    if reason is RefusalReason.WRONG_MODALITY and scene.rng.random() < 0.5:
        return _beyond_limits(scene)
    candidates = scene.absent[reason]
    if not candidates:
        return None
    # Common categories more often, lest being asked for at all tells that something is there.
    weights = [1 / scene.weights.get(entity.name, _RARE) for entity in candidates]
    entity = scene.rng.choices(candidates, weights)[0]
    named = scene.rng.random() < 0.5
    question = name_question(scene, entity) if named else implicit_question(scene, entity, None)
    if question is None:
        return None
    return Draft("absent", question, _refusal(scene, reason, entity), refusal=reason)


def off_topic(scene: Scene, reason: RefusalReason) -> Draft:
    """A question that is about no medical image, or too vague to answer."""
    lists = rules.read_yaml("medisee.entities", "off_topic.yaml")
    question = scene.rng.choice(rules.reserved_share(lists[reason.value], scene.image.split))
    answer = scene.fill(scene.rng.choice(wordings()["refusals"][reason.value]))
    return Draft("absent", language.casual(question, scene.rng), answer, refusal=reason)


def _beyond_limits(scene: Scene) -> Draft | None:
    choices = rules.limit_questions(scene.image, scene.image.split)
    if not choices:
        return None
    question, because = scene.rng.choice(choices)
    answer = scene.rng.choice(wordings()["refusals"]["limits"]).replace("{because}", because)
    reason = RefusalReason.WRONG_MODALITY
    return Draft("absent", language.casual(question, scene.rng), answer, refusal=reason)


def _refusal(scene: Scene, reason: RefusalReason, entity: Entity) -> str:
    names, parts = wordings()["modality_names"], wordings()["body_part_names"]
    kind = names.get(rules.family(scene.image.modality), names["other"])
    part = parts.get(scene.image.body_part, scene.image.body_part)
    name = language.spoken(entity.name)
    text = scene.rng.choice(wordings()["refusals"][reason.value])
    text = text.replace("{lies}", "lie" if language.is_plural(name) else "lies")
    text = text.replace("{part}", part).replace("{am}", language.with_indefinite(kind))
    return agree(text.replace("{m}", kind), "x", language.with_article(name))
