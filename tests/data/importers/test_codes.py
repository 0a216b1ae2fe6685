"""The classes' SNOMED CT codes mean what the DICOM standard's own dictionaries say they mean."""

from __future__ import annotations

from functools import lru_cache

from pydicom.sr._concepts_dict import concepts

from medisee.data.importers.classes import _fold, _words, load_classes

# Not in the DICOM standard; compared by hand with published tables of coded segmentations.
ELSEWHERE = {
    "126952004": "brain tumor",
    "15926001": "brainstem",
    "44029006": "left lung",
    "3341006": "right lung",
    "18639004": "left kidney",
    "9846003": "right kidney",
    "38360009": "left adrenal gland",
    "29392005": "right adrenal gland",
    "110765007": "portal vein and splenic vein",
    "68786006": "left atrial appendage",
    "65985001": "S1 vertebra",
    "181674001": "gluteus maximus muscle",
    "78333006": "gluteus medius muscle",
    "75297007": "gluteus minimus muscle",
    "244849004": "deep back muscle",
    "68455001": "iliopsoas muscle",
    "67769002": "subcutaneous fat",
    "74281007": "myocardium of left ventricle",
    **dict(
        zip(
            (
                "48535007", "78247007", "25888004", "25523003", "15339008", "59558009",
                "24915002", "5953002", "22565002", "77644006", "58830002", "43993008",
            ),
            (f"rib {number}" for number in range(1, 13)),
            strict=True,
        )
    ),
}  # fmt: skip


@lru_cache(maxsize=1)
def meanings():
    found: dict[str, set[str]] = {}
    for entries in concepts["SCT"].values():
        for code, (meaning, _) in entries.items():
            found.setdefault(code, set()).add(meaning)
    return found


def folded(text):
    return {_fold(word) for word in _words(text)} - {"left", "right", "structure", "body", "of"}


def coded():
    table = load_classes()
    return [(entry, entry.codes["snomed"]) for entry in table if "snomed" in entry.codes]


def test_codes_of_the_standard_mean_the_class():
    known = [(entry, meanings()[code]) for entry, code in coded() if code in meanings()]
    assert len(known) > 90
    for entry, said in known:
        names = [folded(name) for name in (entry.name, *entry.synonyms)]
        assert any(words & folded(text) for words in names for text in said), (entry.name, said)


def test_no_class_has_the_code_of_the_other_side():
    for entry, code in coded():
        for text in meanings().get(code, ()):
            words = set(_words(text))
            if {"left", "right"} & words:
                sides = {"left", "right"} & {entry.side, *_words(entry.name)}
                assert sides == {"left", "right"} & words, (entry.name, text)


def test_other_codes_are_listed_here():
    unknown = {code: entry.name for entry, code in coded() if code not in meanings()}
    assert set(unknown) <= set(ELSEWHERE)
    for code, name in unknown.items():
        assert folded(ELSEWHERE[code]) & folded(name)
