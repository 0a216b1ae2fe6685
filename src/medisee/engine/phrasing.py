"""How a question is put together: frames, clues, and what people write around them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medisee.engine import language, rules
from medisee.engine.clues import Clue, find_clues
from medisee.engine.scene import Scene, agree

__all__ = [
    "ask_both",
    "ask_framed",
    "ask_whole",
    "choose_clue",
    "clues_of",
    "with_closer",
    "with_opener",
]

_FRAMES_FOR_SHORT = re.compile(r"\{d\} (\{is\}|outlined|marked)")
_FIRST_PERSON = re.compile(r"\b(I|I'm|I am|I've|[Mm]y|[Mm]e|[Ww]e|[Oo]ur|us)\b")
_GOES_ON = re.compile(
    r"(Which|Where|What|Whose|How|Please|Can|Could|Would|Show|Outline|Mark|Segment|Find|Trace"
    r"|Point|Highlight|Locate|Is|Do|Does)\b"
)
_LONG_PHRASE = 7


def ask_framed(
    scene: Scene, group: str, description: str, clue: str | None = None, most: int | None = None
) -> str:
    """A description in a frame of the group; `clue` goes where the frame has {clue}.

    `most`: words that the whole should have at most.
    """
    room = None if most is None else most - len(f"{description} {clue or ''}".split())
    template = scene.wording(group, room)
    for _ in range(10):
        long = len(description.split()) > _LONG_PHRASE or "," in description
        if not (long and _FRAMES_FOR_SHORT.search(template)):
            break
        template = scene.wording(group, room)
    if clue is not None:
        template = template.replace("{clue}", clue)
        template = template.replace("{Clue}", language.sentence_case(clue))
    return agree(scene.fill(template), "d", description)


def ask_both(scene: Scene, first: str, second: str) -> str | None:
    """Two descriptions of one target in a frame; None where they do not go together."""
    if first == second or language.is_plural(first) != language.is_plural(second):
        return None
    if "," in first or "," in second:  # a list of two would no longer be told from its parts
        return None
    return agree(scene.fill(scene.wording("both"), e=second), "d", first)


def ask_whole(scene: Scene, question: str, clue: str | None = None, most: int | None = None) -> str:
    """A question written by hand; with the clue before or behind it, in `most` words at most."""
    if clue is None:
        return question
    room = None if most is None else most - len(f"{question} {clue}".split())
    goes_on = _GOES_ON.match(question) and not re.search(r"[.!?:] ", question)
    template = scene.wording("hints", room)
    for _ in range(10):
        if goes_on or "{q}" not in template:
            break
        template = scene.wording("hints", room)
    text = template.replace("{clue}", clue).replace("{Clue}", language.sentence_case(clue))
    return text.replace("{q}", question[0].lower() + question[1:]).replace("{Q}", question)


def with_opener(scene: Scene, question: str) -> str | None:
    """A sentence about the person in front; None where the question speaks of one already."""
    if _FIRST_PERSON.search(question):
        return None
    laboratory = rules.family(scene.image.modality) == "microscopy"
    group = "openers.laboratory" if laboratory else "openers.clinical"
    return f"{scene.fill(scene.wording(group))} {language.sentence_case(question)}"


def with_closer(scene: Scene, question: str) -> str:
    """A word of thanks behind, where the question is not polite already."""
    if re.search("please|pls|kind", question, re.IGNORECASE):
        return question
    return f"{question} {scene.wording('closers')}"


def clues_of(scene: Scene, label: str) -> list[Clue]:
    """The clues that are true of the label's masks and do not name it."""
    image, entity = scene.image, scene.entities[label]
    found = find_clues(label, scene.shapes, image.plane, image.body_part)
    return [clue for clue in found if not entity.is_named_in(clue.text)]


def choose_clue(scene: Scene, clues: Sequence[Clue], place: bool, most: int = 99) -> str | None:
    """One of the clues of at most so many words; `place`: of those that tell a position."""
    fitting = [
        clue.text for clue in clues if (clue.place or not place) and len(clue.text.split()) <= most
    ]
    if not fitting:
        return None
    text = scene.rng.choice(fitting)
    for other in re.findall("{([^{}]{2,})}", text):
        text = text.replace("{" + other + "}", language.with_article(language.spoken(other)))
    return scene.fill(text)
