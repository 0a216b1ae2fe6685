"""Stopped at any moment and started again, an import ends as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medisee.data.importers import ImportOptions, Selection, import_source
from medisee.data.importers import writer as writer_module
from medisee.data.importers.writer import split_of
from medisee.data.sa_med2d import Index
from medisee.errors import DataError

CLASSES = {"1": "liver", "2": "spleen", "3": "colon"}
OPTIONS = ImportOptions(classes=CLASSES, selection=Selection(per_category=3))


def source(root, count=6):
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        grey = np.random.default_rng(number).integers(0, 255, (24, 24)).astype(np.uint8)
        mask = np.zeros((24, 24), np.uint8)
        mask[4:9, 4:9] = 1 + number % 3
        mask[14:19, 4:9] = 1 + (number + 1) % 3
        Image.fromarray(grey).save(root / "images" / f"i{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"i{number}.png")
    return root


def content(folder):
    """All files of a data set, but for the journal, which holds times of writing."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("import-in.jsonl")
    }


class KilledError(BaseException):
    """Ends the process' work where a kill would, past every `except Exception`."""


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.booleans())
def test_killed_anywhere_and_started_again(moments, torn):
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        root = source(folder / "in")
        import_source(root, folder / "whole", OPTIONS)
        replace = Path.replace
        left = [0]

        def dying(path, target):
            left[0] -= 1
            if left[0] == 0:
                raise KilledError
            return replace(path, target)

        patch.setattr(Path, "replace", dying)
        for moment in moments:
            left[0] = moment
            try:
                import_source(root, folder / "out", OPTIONS)
            except KilledError:
                journal = folder / "out/work/import-in.jsonl"
                if torn and journal.is_file():
                    journal.write_bytes(journal.read_bytes() + b'{"unit": "images/i')
        left[0] = 0
        import_source(root, folder / "out", OPTIONS)
        assert content(folder / "out") == content(folder / "whole")


def test_a_second_run_does_nothing(tmp_path, monkeypatch):
    root = source(tmp_path / "in")
    first = import_source(root, tmp_path / "out", OPTIONS)
    before = content(tmp_path / "out")
    monkeypatch.setattr(writer_module, "_save", None)
    steps = []
    second = import_source(root, tmp_path / "out", OPTIONS, lambda *step: steps.append(step))
    assert steps == [(6, 6)]
    assert second.to_dict() == first.to_dict()
    assert content(tmp_path / "out") == before


def test_a_mended_file_is_imported_after_all(tmp_path):
    root = source(tmp_path / "in")
    good = (root / "masks/i0.png").read_bytes()
    (root / "masks/i0.png").write_bytes(good[:50])
    options = ImportOptions(classes=CLASSES)
    assert import_source(root, tmp_path / "out", options).images == 5
    (root / "masks/i0.png").write_bytes(good)
    report = import_source(root, tmp_path / "out", options)
    assert (report.images, report.flaws) == (6, [])
    assert len(list(Index.open(tmp_path / "out"))) == 6


def test_other_options_are_refused(tmp_path):
    root = source(tmp_path / "in")
    import_source(root, tmp_path / "out", OPTIONS)
    with pytest.raises(DataError, match="other options"):
        import_source(root, tmp_path / "out", ImportOptions(classes=CLASSES))


def test_a_data_set_that_no_import_made_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/index.jsonl").write_text("")
    with pytest.raises(DataError, match="not imported"):
        import_source(source(tmp_path / "in"), tmp_path / "out", OPTIONS)


def test_several_sources_share_one_folder(tmp_path):
    for name in ("one", "two"):
        import_source(source(tmp_path / name), tmp_path / "out", ImportOptions(classes=CLASSES))
    data = Index.open(tmp_path / "out")
    assert [record.source for record in data] == ["one"] * 6 + ["two"] * 6
    mapping = json.loads((tmp_path / "out/SAMed2D_v1_class_mapping_id.json").read_text())
    assert sorted(mapping.values()) == [1, 2, 3]
    full = [(r.image, r.masks) for r in data]
    (tmp_path / "out/index.jsonl").unlink()
    assert [(r.image, [m.label for m in r.masks]) for r in data] == [
        (image, [m.label for m in masks]) for image, masks in full
    ]


def test_splits_are_eight_to_one_to_one_and_always_the_same():
    splits = [split_of("source", f"patient{number}") for number in range(4000)]
    assert splits.count("train") == pytest.approx(3200, abs=100)
    assert splits.count("val") == pytest.approx(400, abs=70)
    assert split_of("acdc", "patient001") == "train"
    assert split_of("acdc", "patient001") == split_of("acdc", "patient001")
