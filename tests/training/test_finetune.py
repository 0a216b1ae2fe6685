"""Fine-tuning on one's own images: what changes, what stays, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from synthetic import write_data
from tiny import save_nano

import medisee
from medisee.calibration import Calibration
from medisee.categories import Categories
from medisee.entities import load_entities
from medisee.errors import DataError, ModelError
from medisee.familiarity import Familiarity
from medisee.model import MediSeeModel
from medisee.phrases import Phrasebook
from medisee.processing import MediSeeProcessor
from medisee.training import finetune as tuning
from medisee.training.context import fixed_categories
from medisee.training.finetune import Settings, finetune
from medisee.training.meaning import Emitted, search
from medisee.training.names import run_names
from medisee.training.own import read_own
from medisee.training.tasks import predicted_boxes

KNOWN = ["liver", "pancreas"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A tiny model that knows two categories; the spleen is new to it."""
    folder = save_nano(
        tmp_path_factory.mktemp("start") / "tiny", box_decoder="grounded", grounding_grid=8
    )
    states = fixed_categories(KNOWN, 2, 32, seed=7).states
    Categories(KNOWN, states, 0.5 * states).save(folder)
    processor = MediSeeProcessor.from_pretrained(folder)
    words = {name: load_entities()[name].explanation for name in KNOWN}
    MediSeeProcessor(
        processor.config, processor.tokenizer, Phrasebook(words, tuning_refusals())
    ).save_pretrained(folder)
    Familiarity(np.eye(3, 32, dtype=np.float32), np.ones(32, np.float32), 1.0).save(folder)
    Calibration("logistic", (), (1.0, 0.0), 0.5).save(folder / "calibration.json")
    return folder


def tuning_refusals():
    from medisee.training.finish import REFUSALS

    return REFUSALS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("own") / "ct", {"": 5})


@pytest.fixture
def settings(start, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(tuning, "VAL_RECORDS", 12)
    cache = tmp_path_factory.getbasetemp() / "features"
    return Settings(str(start), tmp_path / "run", 3, threads=1, cache=cache)


def test_a_new_category_is_added_and_nothing_else_of_the_heads_changes(data, start, settings):
    own = read_own(data)
    assert own.labels == ("liver", "spleen")
    folder = finetune(own, settings)
    before, after = Categories.load(start), Categories.load(folder)
    assert after.names == ("liver", "pancreas", "spleen")
    assert np.array_equal(after.states[:2], before.states)
    assert set(after.leads) == {"spleen"}
    assert np.array_equal(after.read[1], before.read[1])
    assert not np.array_equal(after.read[0], before.read[0])  # its own images were shown
    old = dict(MediSeeModel.from_pretrained(start).named_parameters())
    for name, value in MediSeeModel.from_pretrained(folder).named_parameters():
        assert torch.equal(value, old[name]), name
    model = medisee.load(str(folder), device="cpu")
    trained = {record.name: record.n_train for record in model.info["targets"]}
    shown = [record for record in own.index if record.split == "train"]
    assert trained == {label: sum(label in r.labels for r in shown) for label in own.labels}
    answer = model.open(data / own.index.chosen[0].image).ask("Segment the spleen.")
    assert answer.findings or answer.refusal
    measured = [
        json.loads(line)
        for stage in ("names", "meaning")
        for line in (settings.out / stage / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(value == value for row in measured for value in row.values())
    assert 0 <= measured[-1]["val_named"] <= 1


def test_the_search_finds_a_state_with_better_boxes(data, start, settings):
    own = read_own(data)
    stage = settings.names.model_copy(update={"steps": 40, "augment": 0.0})
    context = tuning.prepare(own, settings, start)
    weights = {name: value.clone() for name, value in context.model.state_dict().items()}

    def distance():
        found, truth = predicted_boxes(context, context.train)
        return float((found - truth).abs().mean())

    before = distance()
    run_names(context, stage, settings.out / "names")
    assert distance() < 0.8 * before
    assert all(torch.equal(v, weights[n]) for n, v in context.model.state_dict().items())


def test_a_new_meaning_is_told_from_all_old_ones_and_takes_nothing_from_them():
    random = torch.Generator().manual_seed(0)

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, generator=random), dim=-1)

    known, own = unit(6, 40), unit(40)
    asked_old = torch.nn.functional.normalize(known.repeat(20, 1) + 0.5 * unit(120, 40), dim=1)
    # Asked for what it does not know, a model says something of what it knows, too.
    asked_new = torch.nn.functional.normalize(1.2 * known[0] + own + 0.5 * unit(30, 40), dim=1)
    labels = torch.tensor([-1] * 120 + [6] * 30)
    found = search(Emitted(torch.cat([asked_old, asked_new]), labels), known, [6])
    assert found.norm(dim=1).tolist() == pytest.approx([1.0])
    rows = torch.cat([known, found])
    assert ((asked_new @ known.T).argmax(dim=1) == 0).all()
    assert ((asked_new @ rows.T).argmax(dim=1) == 6).all()
    assert torch.equal((asked_old @ rows.T).argmax(dim=1), (asked_old @ known.T).argmax(dim=1))


def test_images_are_held_out_by_patient_and_given_splits_are_kept(data, tmp_path):
    own = read_own(data)
    splits = [record.split for record in own.index]
    assert splits.count("val") == 1
    assert splits == [record.split for record in read_own(data).index]
    given = read_own(write_data(tmp_path / "given", {"train": 3, "val": 2, "test": 2}))
    assert sorted(record.split for record in given.index) == ["train"] * 3 + ["val"] * 2


def test_a_name_without_knowledge_is_asked_for_by_name_only(tmp_path):
    data = write_data(
        tmp_path / "odd", {}, extra={"train": "flux capacitor", "val": "flux capacitor"}
    )
    own = read_own(data)
    assert own.labels == ("flux capacitor",)
    assert not own.describes
    assert "flux capacitor" in own.entities["flux capacitor"].explanation[0]


def test_data_that_teach_nothing_are_refused(data, tmp_path):
    with pytest.raises(DataError, match="no image in the split 'none'"):
        read_own(data, split="none")
    single = write_data(tmp_path / "single", {"": 1})
    with pytest.raises(DataError, match="two patients"):
        read_own(single)
    for mask in (single / "masks").iterdir():
        mask.write_bytes(b"no image")
    with pytest.raises(DataError, match="the mask cannot be read"):
        read_own(single)


def test_a_model_without_states_to_read_is_refused(data, settings, tmp_path):
    bare = save_nano(tmp_path / "bare", box_decoder="grounded", grounding_grid=8)
    with pytest.raises(ModelError, match="align"):
        finetune(read_own(data), Settings(str(bare), settings.out))
