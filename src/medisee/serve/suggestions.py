"""Questions to try on an image: about what the model knows best of this kind of image."""

from __future__ import annotations

from typing import Any

from medisee.entities import load_entities
from medisee.examples import list_examples
from medisee.structures import MedicalImage

__all__ = ["suggest"]

COUNT = 4


def suggest(model: Any, image: MedicalImage, example: str | None = None) -> list[str]:
    """Up to four questions; an example's own comes first.

    Without a known modality these are about what the model has seen most often.
    """
    known = next((each for each in list_examples() if each.name == example), None)
    first = [known.question] if known else []
    body_part = known.body_part if known else None
    ranked = sorted(model.info["targets"], key=lambda target: -target.n_train * (target.dice or 0))
    entities = load_entities()
    fitting = [
        entities[target.name]
        for target in ranked
        if target.name in entities and _fits(entities[target.name], image.modality, body_part)
    ]
    # One each that names the target, then one that describes it.
    asked = [
        f"Where is the {entity.name}?" if index % 2 == 0 or not entity.questions
        else entity.questions[0]
        for index, entity in enumerate(fitting)
    ]  # fmt: skip
    return (first + asked)[:COUNT]


def _fits(entity: Any, modality: str | None, body_part: str | None) -> bool:
    kinds = {kind.partition("-")[0] for kind in entity.modalities}
    return (modality is None or modality in kinds) and (
        body_part is None or body_part in entity.body_parts
    )
