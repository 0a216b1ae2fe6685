"""The paper's ablations: what each row changes, what it starts from, and that it runs."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from synthetic import write_data
from tiny import save_nano

import medisee
from medisee import training
from medisee.errors import InputError, ModelError
from medisee.evaluation.tables import ablation_table
from medisee.model import MediSeeModel
from medisee.training import ablate
from medisee.training.ablate import Row, Settings, check_start, choose_rows, recipe_for, train_row
from medisee.training.adapters import add_lora
from medisee.training.loop import trainable

ROWS = {f"{table} {row.row}": row for table in (4, 5, 6) for row in choose_rows(table)}
RUNS = {row.run: row for row in ROWS.values()}
"""One row for each run; rows that change nothing share theirs."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "ct")


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "tiny"
    return save_nano(folder, box_decoder="grounded", grounding_grid=8)


@pytest.fixture(scope="module")
def starts(init):
    """Run -> what it starts from."""
    made = {}
    for row in RUNS.values():
        key = json.dumps([row.model, row.segmenter])
        made[key] = made.get(key) or ablate.start_model(row, init, seed=3)
    return {run: made[json.dumps([row.model, row.segmenter])] for run, row in RUNS.items()}


@pytest.fixture
def settings(data, init, tmp_path):
    return Settings(data, init, tmp_path / "runs", None, steps=1, threads=1)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(training, "VAL_RECORDS", 90)
    monkeypatch.setitem(ablate._stated()["base"], "records", 60)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_published_row_that_is_named_exists():
    for table in (4, 5, 6):
        rows = [(row.what, row.paper, None) for row in choose_rows(table)]
        assert "not run" in ablation_table(table, rows).to_markdown()


def test_the_rows_are_those_of_the_paper():
    changed = {name: row.model for name, row in ROWS.items() if row.model}
    assert changed == {
        "4 1-single": {"num_candidates": 1},
        "4 2-hard": {"fusion": "hard"},
        "4 2-soft-72": {"router_hidden": 72},
        "4 2-soft-288": {"router_hidden": 288},
        "4 3-soft-144": {"num_candidates": 3},
        "5 text": {"mask_prompts": "text"},
        "5 text+box+points": {"mask_prompts": "text+box+points"},
        "5 text+box-mlp": {"box_decoder": "mlp"},
    }
    assert [name for name, row in ROWS.items() if row.run == "base"] == [
        "4 2-soft-144", "5 text+box", "6 segmenter-frozen", "6 language-whole",
        "6 similarity-without",
    ]  # fmt: skip


def test_rows_are_chosen_by_name():
    assert [row.row for row in choose_rows(5, ["text+box", "text"])] == ["text+box", "text"]
    with pytest.raises(InputError, match=r"no row '2-hard'; it has text, text\+box"):
        choose_rows(5, ["2-hard"])


@pytest.mark.parametrize(("samples", "steps"), [(3000, None), (None, 7)])
def test_stages_are_as_long_as_asked(settings, samples, steps):
    plan = recipe_for(ROWS["4 2-soft-144"], Settings(settings.data, settings.init, settings.out,
                                                     samples, steps))  # fmt: skip
    localise, language, joint = plan.stages
    assert (localise.steps, language.steps, joint.steps) == (
        (94, 108, 375) if samples else (7,) * 3
    )
    assert joint.warmup == (38 if samples else 1)


def test_a_row_states_only_what_differs(settings):
    base = recipe_for(ROWS["6 segmenter-frozen"], settings)
    other = recipe_for(ROWS["6 similarity-with"], settings)
    assert other.stages[:2] == base.stages[:2]
    added = {"similarity_js": 2.0, "similarity_mse": 1.0}
    assert other.stages[2].weights == {**base.stages[2].weights, **added}
    frozen = recipe_for(ROWS["6 language-frozen"], settings)
    assert frozen.stages[2].rates.keys() ^ base.stages[2].rates.keys() == {"mllm.language_model"}


def test_every_row_starts_from_the_same_weights_and_fresh_heads(init, starts):
    before = MediSeeModel.from_pretrained(init).state_dict()
    for run, (model, processor) in starts.items():
        assert not processor.config.mask_boxes
        assert model.config.num_candidates == len(processor.config.candidates)
        kept = ("mllm.", "segmenter.") if RUNS[run].segmenter == "trained" else ("mllm.",)
        for name, value in model.state_dict().items():
            if name.startswith(kept):
                part = value[: len(before[name])] if value.dim() else value
                assert torch.equal(part, before[name]), f"{run} {name}"
    base, random = (starts[run][0].state_dict() for run in ("base", "segmenter-random"))
    for state, prefix in ((base, "projector."), (random, "segmenter.vision_encoder.")):
        name = next(n for n in state if n.startswith(prefix) and state[n].dim() > 1)
        assert not torch.equal(state[name], before[name])
    again, _ = ablate.start_model(RUNS["base"], init, seed=3)
    assert all(torch.equal(value, base[name]) for name, value in again.state_dict().items())


def test_the_third_candidate_is_a_new_word(init, starts):
    model, processor = starts["3-soft-144"]
    before = MediSeeModel.from_pretrained(init)
    table, old = (m.mllm.language_model.embed_tokens.weight for m in (model, before))
    assert len(table) == len(old) + 1
    torch.testing.assert_close(table[-1], old.mean(dim=0))
    assert model.config.candidate_token_ids[2] == len(old)
    assert processor.tokenizer.id_to_token(len(old)) == "[CAND3]"
    assert model.mllm.lm_head.weight is table


def test_rates_and_adapters_fit_every_row(starts, settings):
    """Each row's own part is what its stages train."""
    trained = {}
    for run, (start, _) in starts.items():
        recipe, model = recipe_for(RUNS[run], settings), copy.deepcopy(start)
        if recipe.lora is not None:
            add_lora(model, recipe.lora)
        groups = [trainable(model, stage) for stage in recipe.stages]
        trained[run] = [sum(p.numel() for g in each for p in g["params"]) for each in groups]
    base = trained["base"]
    assert trained["segmenter-whole"][2] > trained["segmenter-lora"][2] > base[2]
    assert trained["segmenter-whole"][:2] == trained["segmenter-lora"][:2] == base[:2]
    assert trained["language-frozen"][2] < trained["language-lora"][2] < base[2]
    assert trained["1-single"][2] < base[2] < trained["2-soft-288"][2]
    assert trained["similarity-with"] == base


def trains_and_answers(row: Row, settings: Settings) -> None:
    folder = train_row(row, settings)
    assert not [*folder.parent.glob("*/checkpoint"), *folder.parent.glob("start*")]
    for stage in ("localise", "language", "joint"):
        [line] = (settings.out / row.run / stage / "metrics.jsonl").read_text().splitlines()
        assert all(value == value for value in json.loads(line).values())  # no NaN
    model = medisee.load(str(folder), device="cpu", runtime="torch")
    image = next((settings.data / "images").glob("*val*"))
    [answer] = model.open(image).ask(["Segment the liver."], explain=False)
    assert answer.findings or answer.refusal


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_every_row_runs(run, settings):
    trains_and_answers(RUNS[run], settings)
    written = (settings.out / run / "model" / "targets.json").stat().st_mtime_ns
    train_row(RUNS[run], settings)
    assert (settings.out / run / "model" / "targets.json").stat().st_mtime_ns == written


def test_a_start_half_written_is_written_again(settings):
    part = settings.out / "base" / "start.part"
    part.mkdir(parents=True)
    (part / "config.json").write_text("{")
    ablate._write_start(RUNS["base"], settings, part.with_suffix(""))
    assert MediSeeModel.from_pretrained(part.with_suffix(""))
    assert not part.exists()


def test_a_start_of_another_form_is_named(init, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(init, folder)
    config = json.loads((folder / "config.json").read_text())
    config["mllm"]["model_type"] = "llava"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="nano's form"):
        check_start(str(folder))
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="no configuration"):
        check_start(str(folder))
    assert check_start(str(init)) == init
