"""The same set from one process, from shards of several machines, and from a Ray cluster."""

from __future__ import annotations

import shutil

import pytest
from engine.scenes import ABDOMEN, CT, add_image, write_index

from medisee.engine import build as builder
from medisee.engine.build import Settings, build
from medisee.errors import InputError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    splits = ("train", "train", "val", "train", "test")
    boxes = {"liver": ABDOMEN["liver"]}
    entries = [add_image(root, f"i{n}", boxes, split=s, **CT) for n, s in enumerate(splits)]
    return write_index(root, entries)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "_CHUNK", 2)
        return build(data, tmp_path_factory.mktemp("whole"), Settings(1)).folder


def contents(folder):
    files = [*folder.glob("*.*"), *(folder / "work").glob("*.*")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_shards_made_apart_are_merged_by_putting_their_parts_together(
    data, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(builder, "_CHUNK", 2)
    for number in (1, 2, 3):  # each on a machine of its own, with a copy of the data
        copy = tmp_path / f"machine{number}/data"
        shutil.copytree(data, copy)
        assert (
            build(copy, tmp_path / f"machine{number}/set", Settings(1), shard=(number, 3)) is None
        )
    merged = tmp_path / "merged"
    for number in (1, 2, 3):
        parts = tmp_path / f"machine{number}/set/work/parts"
        shutil.copytree(parts, merged / "work/parts", dirs_exist_ok=True)
    written = {part.name: part.stat().st_mtime_ns for part in (merged / "work/parts").iterdir()}
    assert build(data, merged, Settings(1)).folder == merged
    assert contents(merged) == contents(whole)
    after = {part.name: part.stat().st_mtime_ns for part in (merged / "work/parts").iterdir()}
    assert after == written  # nothing was made anew


@pytest.mark.slow
def test_two_ray_workers_give_the_same_set(data, whole, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(builder, "_CHUNK", 2)
    try:
        build(data, tmp_path, Settings(1), workers=2, ray="local")
    except InputError as error:
        pytest.skip(f"{error}: this machine is too busy for it")
    assert contents(tmp_path) == contents(whole)
