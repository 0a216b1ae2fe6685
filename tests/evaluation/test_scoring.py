"""Scores against a plain reference on random masks; what is wrong with a file is listed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medisee.boxes import box_iou, mask_to_box
from medisee.data.sa_med2d import Index
from medisee.errors import DataError
from medisee.evaluation import Selection, make_pairs, score
from medisee.evaluation.scoring import _pixels
from medisee.structures import encode_rle

SIZE = (50, 60)


def write(path, lines, selection=None, explain=True):
    """A predictions file, as another program would write it."""
    selection = selection or Selection()
    header = {
        "format": "medisee.predictions/2", "model": "other", "weights": None,
        "explain": explain, "asked": selection.to_dict(), "about": {},
    }  # fmt: skip
    text = [line if isinstance(line, str) else json.dumps(line) for line in (header, *lines)]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def answer(pair, *masks, text="", refusal=None, score=0.5):
    findings = [
        {"score": score, "box": list(mask_to_box(m) or (0, 0, 0, 0)), "mask": encode_rle(m)}
        for m in masks
    ]
    return {"id": pair.id, "text": text, "refusal": refusal, "findings": findings}


@pytest.fixture
def index(data):
    return Index.open(data)


@pytest.fixture
def pairs(index):
    return make_pairs(index, Selection())


def truth(index, pair):
    return np.asarray(index.load_union(pair.masks))


def test_against_a_plain_reference(index, pairs, tmp_path):
    rng = np.random.default_rng(3)
    asked = {}
    for pair in pairs:
        count = rng.integers(0, 4)
        asked[pair.id] = [rng.random(SIZE) < rng.random() for _ in range(count)]
    path = write(tmp_path / "p.jsonl", [answer(pair, *asked[pair.id]) for pair in pairs[::-1]])
    report = score(path, index)
    assert [row.pair.id for row in report.rows] == [pair.id for pair in pairs]
    for row in report.rows:
        masks, true = asked[row.pair.id], truth(index, row.pair)
        union = np.logical_or.reduce([np.zeros(SIZE, bool), *masks])
        assert row.overlap.intersection == (union & true).sum()
        assert row.overlap.predicted == union.sum()
        assert row.overlap.true == true.sum()
        assert row.findings == len(masks) and row.refused == (not masks)
        expected = 0.0
        if masks:
            expected = box_iou([mask_to_box(union)], [mask_to_box(true)])[0, 0]
        assert row.box_iou == pytest.approx(expected)


@pytest.mark.slow
def test_several_processes_score_alike(index, pairs, tmp_path, monkeypatch):
    path = write(tmp_path / "p.jsonl", [answer(pair, truth(index, pair)) for pair in pairs])
    alone = score(path, index).rows
    monkeypatch.setattr("medisee.evaluation.scoring._WORTH_A_PROCESS", 1)
    monkeypatch.setattr("medisee.evaluation.scoring._AT_ONCE", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert score(path, index).rows == alone


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 9), st.floats(0, 1))
def test_run_lengths_are_counted(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    other = np.ones((3, 5), bool)
    codes = [encode_rle(each)["counts"].encode() for each in (mask, other, mask)]
    assert _pixels(codes) == [height * width, 15, height * width]


@pytest.mark.parametrize("counts", [b"", b"~", b"\x01", b"0o", b"PPPPPPPPPPPPPPPP0", b"O"])
def test_what_is_no_run_length_code_covers_nothing(counts):
    good = encode_rle(np.ones((2, 2), bool))["counts"].encode()
    assert _pixels([good, counts, good]) == [4, -1, 4]
    assert _pixels([counts]) == [-1] and _pixels([]) == []


def test_edge_cases(index, data, questions, tmp_path):
    """Nothing there and nothing found: 1; only one of both: 0; a refusal is an empty mask."""
    selection = Selection(questions=questions)
    everything, nothing = np.ones(SIZE, bool), np.zeros(SIZE, bool)
    pairs = make_pairs(index, selection)
    lines = []
    for number, pair in enumerate(pairs):
        if pair.kind == "absent":
            lines.append(answer(pair, *([everything] if number % 2 else [])))
        else:
            lines.append(answer(pair, refusal="not_in_view"))
    report = score(write(tmp_path / "p.jsonl", lines, selection), index, questions)
    for number, row in enumerate(report.rows):
        if row.pair.kind == "absent":
            assert row.overlap.dice == row.overlap.iou == 1 - number % 2
            assert row.refused == (number % 2 == 0)
        else:
            assert row.refused and row.overlap.dice == row.box_iou == 0
    assert report.figures("referring")["cumulative_iou"].value == 0
    empty = write(tmp_path / "e.jsonl", [answer(pair, nothing) for pair in pairs], selection)
    assert all(not row.refused for row in score(empty, index, questions).rows)


def test_faults_are_listed_together(index, pairs, tmp_path):
    good, other, third, _ = pairs
    small = np.ones((10, 10), bool)
    broken = answer(third, np.ones(SIZE, bool))
    broken["findings"][0]["mask"]["counts"] = "1"
    lines = [answer(good), answer(good), "{", {**answer(good), "id": "x"}, answer(other, small)]
    path = write(tmp_path / "p.jsonl", [*lines, broken])
    with pytest.raises(DataError) as caught:
        score(path, index)
    said = str(caught.value)
    assert "6 faults" in said
    for part in ("line 3 answers", "again", "line 4 is not an answer", "line 5 answers x, which",
                 "line 6 has a mask of 10 x 10", "50 x 60", "line 7 has a mask that is no RLE",
                 f"no answer to {pairs[3].id}"):  # fmt: skip
        assert part in said


@pytest.mark.parametrize(
    "change",
    [
        {
            "findings": [
                {"score": 2, "box": [0, 0, 1, 1], "mask": {"size": [50, 60], "counts": "0"}}
            ]
        },
        {"findings": [{"score": 0.5, "box": [0, 0, 1], "mask": {"size": [50, 60], "counts": "0"}}]},
        {"findings": [{"score": 0.5}]},
        {"findings": 3},
        {"refusal": "tired"},
    ],
)
def test_impossible_answers(index, pairs, tmp_path, change):
    lines = [{**answer(pairs[0]), **change}, *map(answer, pairs[1:])]
    with pytest.raises(DataError, match="line 2 has"):
        score(write(tmp_path / "p.jsonl", lines), index)


def test_other_questions_and_other_files_are_refused(index, pairs, questions, tmp_path):
    path = write(tmp_path / "p.jsonl", map(answer, pairs))
    with pytest.raises(DataError, match="without a question file"):
        score(path, index, questions)
    path.write_text("[]\n")
    with pytest.raises(DataError, match="is no predictions file"):
        score(path, index)
    with pytest.raises(DataError, match="cannot be read"):
        score(tmp_path / "none.jsonl", index)


def test_surface_distance_in_mm(index, pairs, tmp_path):
    moved = {}
    for pair in pairs:
        moved[pair.id] = np.roll(truth(index, pair), 2, axis=1)
    path = write(tmp_path / "p.jsonl", [answer(pair, moved[pair.id]) for pair in pairs])
    spacings = {pair.image: (1.0, 0.5) for pair in pairs}
    near = score(path, index, surface=1.0, spacings=spacings)
    assert near.figures("referring")["surface_dice"].value == 1.0
    assert "NSD" in near.to_markdown()
    assert score(path, index, surface=0.4, spacings=spacings).rows[0].surface < 1.0
    with pytest.raises(DataError, match="spacing in mm of 3 images is not given"):
        score(path, index, surface=1.0)


def test_truth_is_read_from_all_mask_files(data, tmp_path):
    index = Index.open(data)
    [pair] = [p for p in make_pairs(index, Selection()) if p.category == "optic disc"]
    assert truth(index, pair).sum() == (np.asarray(Image.open(data / pair.masks[0])) > 0).sum()
