"""Answers to files: all or none, nothing lost, and JSON as documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medisee.boxes import mask_to_box
from medisee.errors import InputError
from medisee.io import free_stem, read_image, write_answer
from medisee.structures import Answer, Finding, Orientation, RefusalReason, decode_rle

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "answer.schema.json"


def answer(findings: int = 2, source: str = "scan.nii.gz", **changes: Any) -> Answer:
    from dataclasses import replace

    read = read_image(np.arange(40 * 50, dtype=np.uint16).reshape(40, 50))
    image = replace(read, source=source, spacing=(0.5, 0.5), orientation=Orientation("R", "A"))
    masks = [np.zeros((40, 50), bool) for _ in range(findings)]
    for number, mask in enumerate(masks):
        mask[5 : 15 + number, 10 * number : 10 * number + 9] = True
    found = [Finding(mask, mask_to_box(mask), 0.8, label="liver") for mask in masks]
    fields = {"question": "Where?", "text": "Here.", "refusal": None, "warnings": ["careful"]}
    return Answer(findings=found, image=image, model="nano", **{**fields, **changes})


def conforms(value: Any, schema: dict[str, Any], where: str = "answer") -> None:
    """The parts of JSON Schema that docs/answer.schema.json uses."""
    kinds = {"string": str, "array": list, "object": dict, "null": type(None), "integer": int,
             "number": (int, float)}  # fmt: skip
    allowed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert any(isinstance(value, kinds[kind]) for kind in allowed), where
    if "enum" in schema:
        assert value in schema["enum"], where
    if isinstance(value, dict):
        assert set(schema.get("required", ())) <= set(value), where
        rest = schema.get("additionalProperties")
        for key, item in value.items():
            known = schema.get("properties", {}).get(key, rest)
            assert known, f"{where}.{key}"
            conforms(item, known, f"{where}.{key}")
    elif isinstance(value, list):
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9), where
        for item in value:
            conforms(item, schema["items"], f"{where}[]")
    elif isinstance(value, (int, float)):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value), where


def test_files_of_an_answer(tmp_path):
    given = answer()
    written = given.save(tmp_path / "new" / "folder")
    assert [path.name for path in written] == [
        "scan.overlay.png", "scan.json", "scan.1.mask.png", "scan.2.mask.png",
    ]  # fmt: skip
    assert sorted(written) == sorted((tmp_path / "new" / "folder").iterdir())
    for finding, path in zip(given.findings, written[2:], strict=True):
        mask = Image.open(path)
        assert mask.mode == "L"
        assert np.array_equal(np.asarray(mask), finding.mask * np.uint8(255))
    stored = json.loads(written[1].read_text(encoding="utf-8"))
    assert stored == given.to_dict()
    assert np.array_equal(decode_rle(stored["findings"][1]["mask"]), given.findings[1].mask)
    assert max(Image.open(written[0]).size) >= 768


def test_refusal_writes_json_and_overlay_only(tmp_path):
    written = write_answer(answer(0, refusal=RefusalReason.NOT_IN_VIEW, text=""), tmp_path)
    assert [path.name for path in written] == ["scan.overlay.png", "scan.json"]


@pytest.mark.parametrize(
    "given",
    [
        answer(),
        answer(0, refusal=RefusalReason.UNCLEAR, seconds={"encode": 0.25, "perceive": 1.0}),
        answer(1, question="Où est le foie ? 肝臓"),
    ],
)
def test_json_is_as_documented(tmp_path, given):
    _, path = write_answer(given, tmp_path)[:2]
    conforms(json.loads(path.read_text(encoding="utf-8")), json.loads(SCHEMA.read_text()))


def test_bare_image_is_as_documented():
    bare = answer()
    bare.image = read_image(np.zeros((40, 50), np.uint8))
    conforms(bare.to_dict(), json.loads(SCHEMA.read_text()))


def test_existing_files_are_kept(tmp_path):
    mine = tmp_path / "scan.2.mask.png"
    mine.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"scan\.2\.mask\.png: is there already"):
        write_answer(answer(1), tmp_path)
    assert list(tmp_path.iterdir()) == [mine]
    assert mine.read_bytes() == b"mine"


def test_overwriting_leaves_no_mask_of_an_older_answer(tmp_path):
    write_answer(answer(2), tmp_path)
    other = tmp_path / "scan.x.mask.png"
    other.write_bytes(b"not ours")
    written = write_answer(answer(1), tmp_path, overwrite=True)
    assert sorted(tmp_path.iterdir()) == sorted([*written, other])


def test_several_answers_are_numbered_and_go_together(tmp_path):
    written = write_answer([answer(1), answer(0)], tmp_path, stem="case")
    assert [path.name for path in written] == [
        "case.q1.overlay.png", "case.q1.json", "case.q1.1.mask.png",
        "case.q2.overlay.png", "case.q2.json",
    ]  # fmt: skip
    written[-1].rename(tmp_path / "kept")
    for path in written[:-1]:
        path.unlink()
    (tmp_path / "case.q2.json").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        write_answer([answer(1), answer(0)], tmp_path, stem="case")
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "case.q2.json"}


def test_free_stem_counts_up(tmp_path):
    answers = [answer()]
    assert free_stem(answers, tmp_path) == "scan"
    write_answer(answers, tmp_path)
    assert free_stem(answers, tmp_path) == "scan-2"


@pytest.mark.parametrize("failing", ["overlay", "to_dict"])
def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch, failing):
    def fail(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Answer, failing, fail)
    with pytest.raises(InputError, match="cannot write there"):
        write_answer(answer(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="cannot write there"):
        write_answer(answer(), tmp_path / "out")
    with pytest.raises(InputError, match="cannot write there"):
        write_answer(answer(), tmp_path / "out" / "deeper")


def test_a_folder_in_a_files_place(tmp_path):
    (tmp_path / "scan.json").mkdir()
    with pytest.raises(InputError):
        write_answer(answer(), tmp_path)
    with pytest.raises(InputError):
        write_answer(answer(), tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.json"]


@pytest.mark.parametrize("stem", ["", "a/b", "..", "x\0", "a/"])
def test_stems_that_are_no_file_name(tmp_path, stem):
    with pytest.raises(InputError, match="plain file name"):
        write_answer(answer(), tmp_path, stem=stem)


@pytest.mark.parametrize(
    ("source", "stem"),
    [("a.b.dcm", "a.b"), ("IM0001", "IM0001"), ("1.2.840.113", "1.2.840.113"), ("array", "array"),
     ("x.NII.GZ", "x")],
)  # fmt: skip
def test_default_stem(tmp_path, source, stem):
    assert write_answer(answer(0, source=source), tmp_path)[1].name == f"{stem}.json"


def test_no_answers(tmp_path):
    with pytest.raises(InputError, match="no answer"):
        write_answer([], tmp_path)
