"""Verdicts: kept at once, read back after a kill, and how far people agree."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medisee.engine.verdicts import (
    Verdict,
    VerdictStore,
    agreements,
    cohen_kappa,
    digest_of,
    screened,
)
from medisee.errors import DataError
from medisee.structures import QARecord, QATarget


def record(key="r1", question="Which organ makes bile?", answer="The liver makes bile."):
    target = QATarget(label="liver", masks=["masks/a.png"], box=(0, 0, 4, 4))
    return QARecord(id=key, image="a.png", kind="implicit", targets=[target],
                    question=question, answer=answer)  # fmt: skip


def verdict(decision, screener="Ada", of=None, **words):
    of = of or record()
    return Verdict(
        record=of.id, digest=digest_of(of), screener=screener, decision=decision, **words
    )


@pytest.fixture
def store(tmp_path):
    return VerdictStore(tmp_path / "work" / "verdicts.jsonl")


def test_a_verdict_is_in_the_file_when_add_returns(store):
    store.add(verdict("keep"))
    assert VerdictStore(store.path).about("r1")["Ada"].decision == "keep"


def test_a_later_verdict_replaces_an_earlier_one_which_stays_in_the_file(store):
    store.add(verdict("keep"))
    store.add(verdict("drop"))
    again = VerdictStore(store.path)
    assert again.about("r1")["Ada"].decision == "drop"
    assert again.counts("Ada") == {"drop": 1}
    assert len(store.path.read_text(encoding="utf-8").splitlines()) == 2


def test_verdicts_survive_a_kill_right_after_they_were_given(store):
    code = (
        "import os, signal, sys\n"
        "from medisee.engine.verdicts import Verdict, VerdictStore\n"
        f"store = VerdictStore({str(store.path)!r})\n"
        "for n in range(3):\n"
        "    store.add(Verdict(record=f'r{n}', digest='', screener='Ada', decision='keep'))\n"
        "os.kill(os.getpid(), getattr(signal, 'SIGKILL', signal.SIGTERM))\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode != 0
    assert [key for key, _ in VerdictStore(store.path).records()] == ["r0", "r1", "r2"]


def test_a_line_that_a_kill_cut_off_is_removed_and_the_next_one_is_whole(store):
    store.add(verdict("keep"))
    with store.path.open("a", encoding="utf-8") as out:
        out.write('{"record": "r2", "dig')
    again = VerdictStore(store.path)
    again.add(verdict("drop", of=record("r3")))
    assert [key for key, _ in VerdictStore(store.path).records()] == ["r1", "r3"]


def test_a_wrong_line_in_the_middle_is_told_with_its_number(store):
    store.add(verdict("keep"))
    with store.path.open("a", encoding="utf-8") as out:
        out.write("nonsense\n")
    with pytest.raises(DataError, match="line 2: is no verdict"):
        VerdictStore(store.path)


@pytest.mark.parametrize(
    ("decision", "words"),
    [("keep", {"question": "A?", "answer": "B."}), ("edit", {}), ("edit", {"question": " "})],
)
def test_words_belong_to_edits_only(decision, words):
    with pytest.raises(ValidationError):
        verdict(decision, **words)


def test_kappa_of_cohens_textbook_case():
    # 50 grants: 20 both yes, 15 both no, 5 yes/no, 10 no/yes; kappa 0.4.
    pairs = [("yes", "yes")] * 20 + [("no", "no")] * 15 + [("yes", "no")] * 5 + [("no", "yes")] * 10
    assert cohen_kappa(pairs) == pytest.approx(0.4)


def test_kappa_where_it_is_not_defined():
    assert cohen_kappa([]) is None
    assert cohen_kappa([("keep", "keep")] * 3) is None


WORD = st.sampled_from(["keep", "edit", "drop"])


@settings(max_examples=60)
@given(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=30))
def test_kappa_is_symmetric_and_one_exactly_for_full_agreement(pairs):
    kappa = cohen_kappa(pairs)
    assert kappa == cohen_kappa([(b, a) for a, b in pairs])
    if kappa is not None:
        assert -1 <= kappa <= 1
        assert (kappa == 1) == all(a == b for a, b in pairs)


def test_agreement_counts_what_both_judged_in_the_same_words(store):
    one, two, three = record("r1"), record("r2"), record("r3")
    for name, decisions in (("Ada", "keep drop keep"), ("Ben", "keep keep skip")):
        for of, decision in zip((one, two, three), decisions.split(), strict=True):
            store.add(verdict(decision, name, of))
    changed = record("r4", question="Which organ is the largest?")
    store.add(verdict("keep", "Ada", record("r4")))
    store.add(verdict("drop", "Ben", changed))
    [agreement] = agreements(store)
    assert agreement.screeners == ("Ada", "Ben")
    assert (agreement.common, agreement.same) == (2, 1)
    assert agreement.kappa == pytest.approx(0.0)


def test_screened_drops_edits_and_keeps(store):
    records = [record(f"r{n}") for n in range(5)]
    words = {"question": "Which organ stores bile?", "answer": "The gallbladder."}
    store.add(verdict("drop", "Ada", records[0]))
    store.add(verdict("keep", "Ben", records[0]))
    store.add(verdict("keep", "Ada", records[1]))
    store.add(verdict("keep", "Ada", records[2]))
    store.add(verdict("edit", "Ben", records[2], **words))
    store.add(verdict("skip", "Ada", records[3]))
    left = {one.id: one for one in screened(records, store)}
    assert sorted(left) == ["r1", "r2", "r3", "r4"]
    assert [left[key].verdict for key in sorted(left)] == ["keep", "edit", None, None]
    assert left["r2"].question == words["question"]


def test_a_verdict_about_other_words_does_not_count(store):
    store.add(verdict("drop", of=record(question="Which organ is the largest?")))
    assert [one.verdict for one in screened([record()], store)] == [None]
