"""Whole volumes: linking, going on where it stopped, and `medisee ask` about one."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_series import SECRETS, write_series
from hypothesis import given, settings
from hypothesis import strategies as st

from medisee.errors import InputError
from medisee.io import open_volume, read_image
from medisee.testing import FakeModel
from medisee.volume import Journal, SliceAnswer, SliceFinding, ask_volume, fingerprint, link

SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "volume-answer.schema.json"


def square(left, size=4, shape=(12, 20)):
    mask = np.zeros(shape, bool)
    mask[2 : 2 + size, left : left + size] = True
    return mask


def found(left, label="liver", score=0.8):
    return SliceFinding(label, score, square(left))


def test_neighbours_that_overlap_are_one_finding_with_a_score_for_each_slice():
    [finding] = link([[found(2, score=0.5)], [found(3, score=0.9)], [found(4, score=0.7)]])
    assert finding.label == "liver"
    assert finding.scores == {0: 0.5, 1: 0.9, 2: 0.7}
    assert finding.score == 0.9
    assert np.array_equal(finding.masks[1], square(3))


def test_one_slice_may_be_missing_but_not_two():
    [finding] = link([[found(2)], [], [found(2)], [found(2)], [], [], [found(2)]])
    assert sorted(finding.masks) == [0, 2, 3]


def test_a_chance_hit_elsewhere_is_dropped():
    [finding] = link([[found(2)], [found(2), found(14)], [found(2)]])
    assert not finding.masks[1][:, 14:].any()


def test_a_wrong_name_on_one_slice_is_dropped_and_two_targets_are_kept():
    both = [found(1, "left kidney"), found(12, "right kidney")]
    findings = link([both, both, [*both, found(6, "spleen")], both])
    assert [finding.label for finding in findings] == ["left kidney", "right kidney"]


def test_nothing_found_is_nothing():
    assert link([[], [], []]) == []
    assert link([[SliceFinding("liver", 0.5, np.zeros((4, 4), bool))]]) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 16), st.sampled_from("ab")), max_size=3)))
def test_linking_invents_no_pixel(slices):
    findings = link([[found(left, name) for left, name in here] for here in slices])
    for finding in findings:
        for index, mask in finding.masks.items():
            said = [square(left) for left, name in slices[index] if name == finding.label]
            assert not (mask & ~np.any(said, axis=0)).any()


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii.gz"
    values = np.random.default_rng(0).integers(0, 99, (16, 12, 5)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, 2.0, 4.0, 1.0])), path)
    return path


class CountingModel(FakeModel):
    """Counts what it opens, and is stopped by Ctrl-C after `patience` images."""

    def __init__(self, patience=1000):
        super().__init__()
        self.patience = patience

    def open(self, image):
        self.patience -= 1
        if self.patience < 0:
            raise KeyboardInterrupt
        return super().open(image)


def test_an_answer_about_a_volume(scan, tmp_path):
    steps = []
    with open_volume(scan) as volume:
        [answer] = ask_volume(
            FakeModel(),
            volume,
            ["Where?"],
            progress=lambda *step: steps.append(step),
        )
    assert steps[0] == (0, 5)
    assert steps[-1] == (5, 5)
    assert answer.text == "The liver is in the middle."
    [finding] = answer.findings
    assert finding.label == "liver"
    assert sorted(finding.masks) == [0, 1, 2, 3, 4]
    assert answer.mask(0).shape == (16, 12, 5)
    value = answer.to_dict()
    json.dumps(value)
    assert value["findings"][0]["volume_mm3"] == finding.voxels * 8
    assert value["volume"]["slices"] == 5


def test_a_refusal_of_all_slices_is_a_refusal(scan):
    with open_volume(scan) as volume:
        [answer] = ask_volume(FakeModel(), volume, ["Is the absent thing here?"])
    assert answer.refusal.value == "not_in_view"
    assert answer.findings == []
    assert answer.text == "I cannot answer that."


def test_stopped_it_goes_on_where_it_was(scan, tmp_path):
    with open_volume(scan) as volume:
        journal = Journal(tmp_path / "journal.jsonl")
        with pytest.raises(KeyboardInterrupt):
            ask_volume(CountingModel(patience=3), volume, ["Where?"], journal=journal)
        with journal.path.open("a") as file:
            file.write('\n{"slice": 3, "answ')  # killed while writing
        assert sorted(journal.read()) == [0, 1, 2]
        patient = CountingModel(patience=3)  # two slices, and one to explain
        [answer] = ask_volume(patient, volume, ["Where?"], journal=journal)
        [alone] = ask_volume(FakeModel(), volume, ["Where?"])
    assert patient.patience == 0
    assert answer.to_dict()["findings"] == alone.to_dict()["findings"]


def test_a_slice_answer_survives_json():
    given = SliceAnswer([found(3)], None)
    back = SliceAnswer.from_dict(json.loads(json.dumps(given.to_dict())))
    assert np.array_equal(back.findings[0].mask, square(3))


def test_fingerprints_tell_work_apart(scan):
    model = FakeModel()
    with open_volume(scan) as volume, open_volume(scan, window="10,20") as other:
        prints = {
            fingerprint(model, volume, ["Where?"]),
            fingerprint(model, volume, ["Which?"]),
            fingerprint(model, other, ["Where?"]),
        }
        assert fingerprint(model, volume, ["Where?"]) in prints
    assert len(prints) == 3


def test_ask_takes_the_whole_volume_or_one_slice(run, fake, scan, tmp_path):
    done = run("ask", scan, "Where is the liver?", "--out", "results")
    assert done.code == 0
    assert "scan.nii.gz, 5 axial slices" in done.out
    assert "0 to 4 (5)" in done.out
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names == ["scan.1.mask.nii.gz", "scan.json", "scan.overlay.png"]
    done = run("ask", scan, "Where is the liver?", "--slice", "2", "--out", "one")
    assert (tmp_path / "one" / "scan.1.mask.png").is_file()


def test_ask_json_of_a_volume_is_as_documented(run, tmp_path):
    jsonschema = pytest.importorskip("jsonschema", reason="needs the extra dev")
    check = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    slice_ = read_image("example:abdomen-mr").pixels.T[:, ::-1]
    values = np.stack([slice_, slice_], axis=2).astype(np.int16)
    affine = np.diag([-1.5, -1.5, 3, 1])
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "mr.nii.gz")
    questions = ["Which organ makes bile?", "How is the weather?"]
    found = []
    for source in (tmp_path / "mr.nii.gz", write_series(tmp_path / "ct", depth=2)):
        answers = json.loads(run("ask", source, *questions, "--json").out)
        assert [error.message for value in answers for error in check.iter_errors(value)] == []
        assert answers[1]["refusal"] == "not_medical"
        found.append([finding["label"] for finding in answers[0]["findings"]])
    assert found[0] == ["liver"]


@pytest.mark.parametrize("packed", [False, True])
def test_ask_a_dicom_series(run, fake, tmp_path, packed):
    source = write_series(tmp_path / "ct")
    if packed:
        with zipfile.ZipFile(tmp_path / "ct.zip", "w") as archive:
            for path in source.iterdir():
                archive.write(path, f"../../{path.name}")  # nothing is unpacked anywhere
        source = tmp_path / "ct.zip"
    done = run("ask", source, "Where?", "--out", "results", "--as", "seg,nifti")
    assert done.code == 0, done.err
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert {"ct.seg.dcm", "ct.1.mask.nii.gz", "ct.json", "ct.overlay.png"} == names
    told = done.out + done.err + (tmp_path / "results" / "ct.json").read_text(encoding="utf-8")
    assert [word for word in SECRETS if word in told] == []


def test_slices_are_ordered_by_where_they_lie(tmp_path):
    with open_volume(write_series(tmp_path / "ct")) as volume:
        assert [int(image.pixels[0, 0]) for image in volume] == [0, 10, 20, 30, 40]
        assert volume.plane == "axial"
        assert volume.voxel_mm3 == pytest.approx(1.5 * 0.5 * 3)


def test_a_folder_with_several_series_says_which_it_takes(tmp_path):
    write_series(tmp_path / "all" / "a")
    write_series(tmp_path / "all" / "b", depth=2, SeriesNumber=9)
    (tmp_path / "all" / "note.txt").write_text("hello")
    with open_volume(tmp_path / "all") as volume:
        assert len(volume) == 5
        assert "series 3" in volume.notes[0]
    assert read_image(tmp_path / "all", series=9).pixels[0, 0] == 10
    with pytest.raises(InputError, match="series 4 is not there; 3, 9 are"):
        read_image(tmp_path / "all", series=4)


def test_uneven_slices_are_told_and_have_no_nifti(run, fake, tmp_path):
    root = write_series(tmp_path / "ct", depth=4)
    sorted(root.iterdir())[1].unlink()
    with open_volume(root) as volume:
        if volume.affine is None:
            assert "not evenly spaced" in volume.notes[-1]
    done = run("ask", root, "Where?", "--out", "results", "--as", "nifti")
    assert done.code == (0 if volume.affine is not None else 2)
