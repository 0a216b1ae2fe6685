from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from engine.scenes import ABDOMEN, CT, EYE, add_image, write_index
from PIL import Image

from medisee.data.mlmr_sd import check_records, read_records
from medisee.data.sa_med2d import Index
from medisee.engine import build as builder
from medisee.engine.build import Settings, build
from medisee.engine.intake import split_of
from medisee.engine.rules import reserved_share
from medisee.engine.stats import read_stats
from medisee.entities import load_entities
from medisee.errors import DataError

SPLITS = ("train", "val", "test")
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    entries = [
        add_image(root, f"{split}{n}", ABDOMEN, split=split, **CT)
        for split, count in (("train", 3), ("val", 2), ("test", 1))
        for n in range(count)
    ]
    for n in range(2):
        disc = {"optic disc": (20 + n, 30, 40, 50)}
        entries.append(add_image(root, f"eye{n}", disc, split="train", **EYE))
    return write_index(root, entries)


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("set")
    return build(data, out, Settings(16, 1))


def records_of(folder):
    return [r for split in SPLITS for r in read_records(folder / f"{split}.jsonl")]


def contents(folder):
    """Every file that people use, and its bytes."""
    files = [*folder.glob("*.*"), *(folder / "work").glob("*.*")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_sixteen_questions_about_each_target_in_balance(built):
    groups = defaultdict(list)
    for record in records_of(built.folder):
        if record.kind == "implicit":
            groups[record.image, record.label].append(record)
    assert len(groups) == 6 * 3 + 2
    for (image, _), about in groups.items():
        assert len(about) == 16
        assert Counter(r.pass_ for r in about) == {1: 8, 2: 8}
        assert 6 <= sum(r.length == "short" for r in about) <= 10
        located = sum(r.perspective == "location" for r in about)
        low, high = (3, 6) if "eye" in image else (6, 8)
        assert low <= located <= high
        words = [len(r.question.split()) for r in about]
        limits = [(5, 15) if r.length == "short" else (10, 20) for r in about]
        assert all(low <= n <= high for n, (low, high) in zip(words, limits, strict=True))
        texts = {"".join(filter(str.isalnum, r.question.lower())) for r in about}
        assert len(texts) == 16


def test_the_other_kinds_are_there_too(built):
    kinds = Counter(r.kind for r in records_of(built.folder))
    assert set(kinds) == {"implicit", "referring", "absent", "several", "round"}
    assert kinds["implicit"] == 20 * 16


def test_records_agree_with_the_data_set(data, built):
    assert check_records(records_of(built.folder), Index.open(data)) == sum(
        built.stats.records.values()
    )


def test_wordings_of_val_are_never_in_train(built):
    entity = load_entities()["liver"]
    text = {split: (built.folder / f"{split}.jsonl").read_text().lower() for split in SPLITS}
    for wordings in (entity.descriptions, entity.questions):
        for kept in reserved_share(wordings, "val"):
            assert kept.lower().rstrip(".?") not in text["train"]
        for free in reserved_share(wordings, "train"):
            assert free.lower().rstrip(".?") not in text["val"] + text["test"]


def test_the_same_input_gives_the_same_files(data, built, tmp_path):
    build(data, tmp_path / "again", Settings(16, 1))
    assert contents(tmp_path / "again") == contents(built.folder)
    other = build(data, tmp_path / "other", Settings(16, 2))
    assert other.stats.checksum != built.stats.checksum


@pytest.mark.slow
def test_many_processes_give_the_same_files(data, built, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_CHUNK", 2)
    build(data, tmp_path / "many", Settings(16, 1), workers=2)
    assert contents(tmp_path / "many") == contents(built.folder)


def test_shards_put_together_give_the_same_files(data, built, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_CHUNK", 3)
    assert build(data, tmp_path, Settings(16, 1), shard=(1, 2)) is None
    assert build(data, tmp_path, Settings(16, 1), shard=(2, 2)) is not None
    assert contents(tmp_path) == contents(built.folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments_it_goes_on_to_the_same_files(
    data, built, tmp_path, monkeypatch, seed
):
    monkeypatch.setattr(builder, "_CHUNK", 1)
    dice = random.Random(seed)
    for _ in range(5):
        child = os.fork()
        if child == 0:
            build(data, tmp_path, Settings(16, 1))
            os._exit(0)
        time.sleep(dice.random() ** 2 * 0.6)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    build(data, tmp_path, Settings(16, 1))
    assert contents(tmp_path) == contents(built.folder)
    assert not list(tmp_path.rglob("work/parts/*.partial"))


def test_a_changed_file_makes_its_chunk_anew_and_no_other(data, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_CHUNK", 1)
    build(data, tmp_path, Settings(4))
    before = {part.name for part in (tmp_path / "work/parts").iterdir()}
    path = data / "masks" / "train0--0000_000.png"
    old = path.read_bytes()
    try:
        path.write_bytes(b"not a picture")
        built = build(data, tmp_path, Settings(4))
    finally:
        path.write_bytes(old)
    after = {part.name for part in (tmp_path / "work/parts").iterdir()}
    assert len(before - after) == len(after - before) == 1
    assert built.stats.left_out["the mask cannot be read"] == {"files": 1, "pairs": 1}


def test_bad_input_is_told_file_by_file_and_stays_in_the_count(tmp_path):
    root = tmp_path / "data"
    whole = add_image(root, "whole", ABDOMEN, split="train", **CT)
    sizes = add_image(root, "sizes", ABDOMEN, split="train", **CT)
    Image.new("L", (50, 50), 255).save(root / sizes["masks"][0]["file"])
    empty = add_image(root, "empty", ABDOMEN, split="train", **CT)
    Image.new("L", (100, 100), 0).save(root / empty["masks"][1]["file"])
    broken = add_image(root, "broken", ABDOMEN, split="train", **CT)
    (root / broken["image"]).write_bytes((root / broken["image"]).read_bytes()[:60])
    gone = add_image(root, "gone", ABDOMEN, split="train", **CT)
    (root / gone["masks"][2]["file"]).unlink()
    strange = add_image(root, "strange", {**ABDOMEN, "flux capacitor": (1, 1, 9, 9)}, **CT)
    apart = add_image(root, "apart", ABDOMEN, split="own-test", **CT)
    bare = {**add_image(root, "bare", {}, split="train", **CT), "masks": []}
    lines = [whole, "nonsense", sizes, empty, broken, gone, strange, apart, bare, '{"image": 3']
    write_index(root, lines)
    built = build(root, tmp_path / "set", Settings(2))
    assert built.stats.left_out == {
        "a line that is no image record": {"files": 2, "pairs": 0},
        "the image cannot be read": {"files": 1, "pairs": 3},
        "the image has no mask": {"files": 1, "pairs": 0},
        "the knowledge base has no such label": {"files": 1, "pairs": 1},
        "the mask cannot be read": {"files": 1, "pairs": 1},
        "the mask is empty": {"files": 1, "pairs": 0},
        "every mask of the label is empty": {"files": 1, "pairs": 1},
        "the mask is of another size than its image": {"files": 1, "pairs": 1},
        "the split 'own-test' is kept apart": {"files": 1, "pairs": 3},
    }
    pairs = built.stats.build["pairs"]
    assert pairs["in all"] == 22
    assert pairs["built"] + sum(n["pairs"] for n in built.stats.left_out.values()) == 22
    told = (tmp_path / "set/work/left_out.jsonl").read_text()
    for name in ("sizes--0000", "empty--0001", "broken", "gone--0002", "strange--0003", "apart"):
        assert name in told


def test_unknown_class_ids_of_the_plain_layout(tmp_path):
    root = tmp_path / "data"
    add_image(root, "ct_00--demo--1", {"liver": (4, 4, 40, 50)})
    (root / "masks/ct_00--demo--1--0000_000.png").rename(root / "masks/x--0007_000.png")
    masks = ["masks/x--0007_000.png", "masks/x--0009_000.png", "masks/odd.png"]
    (root / "SAMed2D_v1.json").write_text(json.dumps({"images/ct_00--demo--1.png": masks}))
    (root / "SAMed2D_v1_class_mapping_id.json").write_text('{"liver": 7}')
    built = build(root, tmp_path / "set", Settings(4))
    assert built.stats.left_out["unknown class id"] == {"files": 1, "pairs": 1}
    assert built.stats.left_out["a mask name without a class id"] == {"files": 1, "pairs": 1}
    assert sum(built.stats.records.values()) >= 4
    assert built.stats.build["pairs"] == {"in all": 3, "built": 1}


def test_splits_follow_the_patient_eight_one_one():
    from medisee.data.sa_med2d import ImageRecord

    images = [ImageRecord(f"{n}.png", (), patient=f"p{n // 2}") for n in range(4000)]
    splits = [split_of(image) for image in images]
    assert splits[::2] == splits[1::2]
    shares = {split: count / 4000 for split, count in Counter(splits).items()}
    assert shares == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.02)


def test_leaks_between_splits_are_told(tmp_path):
    root = tmp_path / "data"
    first = add_image(root, "first", ABDOMEN, split="train", **CT)
    twin = add_image(root, "twin", ABDOMEN, split="val", **CT)
    (root / twin["image"]).write_bytes((root / first["image"]).read_bytes())
    other = {**add_image(root, "other", ABDOMEN, split="test", **CT), "patient": "first"}
    write_index(root, [first, twin, other])
    built = build(root, tmp_path / "set", Settings(2))
    assert built.stats.build["leaks"] == {"patients in two splits": 1, "images in two splits": 1}
    pairs = (tmp_path / "set/work/leaks.jsonl").read_text().splitlines()
    assert [json.loads(pair) for pair in pairs] == [["images/first.png", "images/twin.png"]]
    assert "patients in two splits: 1" in (tmp_path / "set/card.md").read_text()


def test_stats_count_the_files_and_nothing_is_lost(built):
    stats = read_stats(built.folder)
    assert stats == built.stats
    rules = stats.build["rules"]
    dropped = (built.folder / "work/dropped.jsonl").read_text().splitlines()
    assert sum(rule["dropped"] for rule in rules.values()) == len(dropped)
    assert all(json.loads(line)["reason"] for line in dropped)
    reviewed = rules["markup"]["checked"]
    assert reviewed == sum(stats.records.values()) + len(dropped)
    card = (built.folder / "card.md").read_text()
    assert stats.checksum in card and "optic disc" in card and "Licences" in card


def test_bad_requests(data, tmp_path):
    with pytest.raises(DataError, match="no finished build"):
        read_stats(tmp_path)
    with pytest.raises(DataError, match="shard"):
        build(data, tmp_path, Settings(4), shard=(3, 2))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.jsonl").write_text("keep me")
    with pytest.raises(DataError, match="no build wrote"):
        build(data, tmp_path / "mine")
    with pytest.raises(DataError, match="no image"):
        build(write_index(tmp_path, ["nonsense"]), tmp_path / "set")


def test_the_independent_audit_finds_nothing(data, built):
    done = subprocess.run(
        [sys.executable, SCRIPTS / "audit_set.py", built.folder, data],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "unread: 0" in done.stdout


def test_the_independent_audit_finds_what_is_wrong(data, built, tmp_path):
    lines = (built.folder / "train.jsonl").read_text().splitlines()
    record = next(r for r in map(json.loads, lines) if r["label"] == "liver")
    wrong = [
        "Which organ, the one called livver, makes bile?",
        "Which organ makes bile, in the lower right of the scan?",
        "On the patient's left of the left kidney, which organ makes bile?",
    ]
    for split in SPLITS:
        (tmp_path / f"{split}.jsonl").write_text("")
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({**record, "question": text}) + "\n" for text in wrong)
    )
    done = subprocess.run(
        [sys.executable, SCRIPTS / "audit_set.py", tmp_path, data],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "leak: 1 " in done.stdout and "false: 2 " in done.stdout
