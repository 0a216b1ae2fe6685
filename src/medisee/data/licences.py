"""Which images may be passed on: what their licence is not known to allow, it forbids."""

from __future__ import annotations

import re

__all__ = ["may_be_passed_on"]

_VERSION = r"(?:[ -]?v?[0-9][0-9.]*)?(?: (?:international|unported|generic|licen[cs]e|or later))*"
# Derivatives must be allowed too, since images are turned into 8-bit PNG: no licence with "nd".
_OPEN = re.compile(
    "(?:cc[ -]?0|cc[ -]by(?:-nc)?(?:-sa)?"
    "|creative commons (?:zero|attribution(?:[ -]non-?commercial)?(?:[ -]share-?alike)?)"
    "|public domain(?: mark)?|mit|isc|bsd(?:-[0-9]-clause)?|apache|[al]?gpl|mpl"
    f"|odbl|odc[ -]by|pddl){_VERSION}"
)
_URL = re.compile(r"https?://creativecommons\.org/(?:publicdomain|licenses/by(?:-nc)?(?:-sa)?)/\S*")


def may_be_passed_on(licence: str | None) -> bool:
    """Whether a licence, as a data set states it, lets others have a converted copy of an image.

    Of several ("CC BY-NC-SA 3.0 / CC BY 4.0") each must. "research use", "not stated" and
    whatever else is not known does not.
    """
    plain = re.sub(r"\([^)]*\)", "", _URL.sub("CC0", licence or "")).lower()
    parts = [part.strip() for part in re.split("[/;,]", plain)]
    return all(_OPEN.fullmatch(part) for part in parts)
