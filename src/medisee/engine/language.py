"""The little English grammar that the offline writer needs: number, articles, everyday typing."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import lru_cache

__all__ = [
    "casual",
    "is_plural",
    "join",
    "plural",
    "sentence_case",
    "spoken",
    "with_article",
    "with_indefinite",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SINGULAR_IN_S = _words(
    "abscess atlas axis biceps bias caries diabetes gas herpes iris lens mass pancreas pelvis "
    "process sepsis series species triceps"
)
_IRREGULAR_PLURALS = _words(
    "alveoli bronchi children feet fungi ganglia glomeruli hippocampi humeri men nuclei "
    "people sulci teeth thalami vertebrae villi women"
)
_HEAD_ENDS = _words(
    "not two three four five six seven eight nine about above across after against along among "
    "and around as at away before behind below beneath beside between beyond but by down during "
    "for from here if in inside into just left like lying near next of off on onto or out outside "
    "over past right running seen shown since so sitting still that through to toward towards "
    "under until up upon used what when where which while who whose with within without you i we "
    "he she it they is are was were has have can may must does do did made making most often "
    "usually goes lies sits runs makes carries gets gives keeps a an the each every any some my "
    "your his her its people doctors"
)
_DETERMINERS = _words("a an the my your his her its our their this that one")
_ADJECTIVAL_SIDES = frozenset(("left", "right", "used", "most", "next", "inside", "outside"))
_NUMBERED = re.compile(r"(^| )[A-Z]*\d+(-[A-Z]*\d+)?$", re.IGNORECASE)


@lru_cache(maxsize=16384)
def is_plural(phrase: str) -> bool:
    """Whether a noun phrase takes a plural verb, judged by its head noun."""
    words = re.findall(r"[A-Za-z0-9'\u2019-]+", _until_comma(phrase))
    head: list[str] = []
    for word in words:
        # An abbreviation in capitals that ends in S is no plural: "STS".
        word = word if word.isupper() else word.lower()
        adjective = word in _ADJECTIVAL_SIDES and len(head) < 2
        opened = bool(head) and len(head) > (head[0] in _DETERMINERS)
        if word in _HEAD_ENDS and opened and not adjective:
            break
        head.append(word)
    if head[:1] == ["both"] or head[:1] == ["these"] or head[:1] == ["those"]:
        return True
    while len(head) > 2 and re.search(r"(ed|ing|ly)$", head[-1]):
        head.pop()
    return bool(head) and _is_plural_noun(head[-1])


def _until_comma(phrase: str) -> str:
    """The part before the first comma, or the second where the first part is one adjective."""
    parts = phrase.split(",")
    return " ".join(parts[:2]) if len(parts[0].split()) < 3 else parts[0]


def _is_plural_noun(word: str) -> bool:
    if word in _IRREGULAR_PLURALS:
        return True
    if word in _SINGULAR_IN_S or not word.endswith("s") or re.search("['\u2019]s?$", word):
        return False
    return not re.search("(ss|us|is)$", word)


def plural(noun: str) -> str | None:
    """The plural of a regular noun phrase, its last word being the noun; None when unsure."""
    word = noun.split()[-1]
    if word in ("nucleus", "thalamus", "humerus"):
        return noun[:-2] + "i"
    if re.search("(us|a|en|[0-9sxz])$", word):
        return None
    return noun[:-1] + "ies" if re.search("[^aeiou]y$", word) else noun + "s"


def spoken(label: str) -> str:
    """A label as people write it: "lower lobe of left lung" -> "lower lobe of the left lung"."""
    label = re.sub(r"\bof (?=(left|right|heart)\b)", "of the ", label)
    return label.replace("barrett", "Barrett")


def with_article(name: str) -> str:
    """The name with "the", except behind a number ("L4", "rib 9") or a determiner."""
    if _NUMBERED.search(name) or re.match(r"(the|a|an|both|my|your)\b", name, re.IGNORECASE):
        return name
    return f"the {name}"


def with_indefinite(noun: str) -> str:
    """The noun with "a" or "an", by sound: an MRI, an X-ray, a US image."""
    vowel = re.match(r"[aeio]|u(?!ni|s)|MR|X-|OCT|NM|LV|RV", noun, re.IGNORECASE)
    return f"{'an' if vowel else 'a'} {noun}"


def join(phrases: Sequence[str]) -> str:
    """ "a and b"; "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def sentence_case(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def casual(text: str, rng: random.Random, typos: bool = True) -> str:
    """Now and then the text as it is typed in a hurry: lower case, no full stop, a typo."""
    roll = rng.random()
    if roll < 0.12:
        return text.lower().rstrip(".?! ") or text
    if roll < 0.17:
        return text.rstrip(".?! ") or text
    if roll < 0.21 and typos:
        return _typo(text, rng)
    if roll < 0.23 and text.endswith("?"):
        return text + "?"
    return text


def _typo(text: str, rng: random.Random) -> str:
    places = [m.span() for m in re.finditer(r"[a-z]{5,}", text)]
    if not places:
        return text
    start, end = rng.choice(places)
    at = rng.randrange(start + 1, end - 2)
    swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    dropped = text[:at] + text[at + 1 :]
    doubled = text[:at] + text[at] + text[at:]
    return rng.choice((swapped, dropped, doubled))
