"""Whole runs on a few drawn images: all tasks, a kill and its exact resume, bad data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from synthetic import write_data
from tiny import save_nano

import medisee
from medisee import training
from medisee.categories import Categories
from medisee.data.sa_med2d import Index
from medisee.errors import DataError, ModelError
from medisee.training import loop
from medisee.training.recipe import Recipe

COMMON = {"batch": 2, "warmup": 1, "validate_every": 100}
HEADS = {"box_decoder": 1e-3, "fusion.router_det": 1e-3}
MASKS = {"segmenter.mask_decoder": 1e-3, "projector": 1e-3, "fusion.router_seg": 1e-3}
WORDS = {"text": 1.0, "decision": 1.0, "state": 1.0, "category": 1.0, "another": 1.0}
STAGES = {
    "localise": {"rates": HEADS, "weights": {"l1": 1.0, "giou": 1.0, "heat": 1.0}, "augment": 0.5},
    "masks": {"rates": MASKS, "weights": {"bce": 1.0, "dice": 1.0}, "augment": 0.5},
    "language": {"rates": {"mllm": 1e-3}, "weights": WORDS, "questions": 3, "explain": 0.5},
    "align": {"questions": 3},
    "joint": {
        "rates": {"mllm": 1e-4, **HEADS, **MASKS},
        "weights": {
            **WORDS,
            "l1": 1.0,
            "giou": 1.0,
            "bce": 1.0,
            "dice": 1.0,
            "similarity_js": 2.0,
            "similarity_mse": 1.0,
        },
        "questions": 3,
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "ct")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return save_nano(
        tmp_path_factory.mktemp("start") / "tiny",
        box_decoder="grounded",
        grounding_grid=8,
        num_candidates=2,
    )


@pytest.fixture(autouse=True)
def few_questions(monkeypatch):
    monkeypatch.setattr(training, "VAL_RECORDS", 90)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recipe(data, start, tmp_path, tmp_path_factory):
    def make(tasks, **changes):
        stages = [{"name": t, "task": t, "steps": 2, **COMMON, **STAGES[t]} for t in tasks]
        for stage in stages:
            stage["steps"] = changes.get("steps", stage["steps"])
        values = {
            "data": str(data), "init": str(start), "out": str(tmp_path / "run"), "threads": 1,
            "cache": str(tmp_path_factory.getbasetemp() / "features"), "records": 60,
            "checkpoint_every": 2, "stages": stages,
        }  # fmt: skip
        changes.pop("steps", None)
        return Recipe(**{**values, **changes})

    return make


def trained(folder, stage):
    from safetensors.torch import load_file

    return load_file(folder / stage / "checkpoint" / "trained.safetensors")


def measured(folder, task):
    """The one line that a short stage writes."""
    [line] = (folder / "run" / task / "metrics.jsonl").read_text().splitlines()
    return json.loads(line)


def test_all_stages_make_a_model_that_answers(recipe, data, tmp_path):
    plan = recipe(list(STAGES))
    folder = training.train(plan)
    assert folder == tmp_path / "run" / "model"
    for task in STAGES:
        row = measured(tmp_path, task)
        assert row["step"] == 2
        assert all(value == value for value in row.values())  # no NaN
        assert {f"loss_{name}" for name in STAGES[task].get("weights", {})} <= row.keys()
        assert any(key.startswith("val_") for key in row)
        # The first steps move the weights by about the learning rate.
        assert trained(tmp_path / "run", task)
    model = medisee.load(str(folder), device="cpu")
    assert {record.name: record.n_train for record in model.info["targets"]} == {
        "liver": 3,
        "spleen": 2,
    }
    index = Index.open(data)
    image = next(index.records("val"))
    session = model.open(index.root / image.image)
    answer = session.ask("Segment the liver.")
    assert answer.findings or answer.refusal
    assert all(finding.mask.shape == (48, 64) for finding in answer.findings)


def test_adapters_are_trained_through_the_loop_and_merged(recipe, start):
    from medisee.model import MediSeeModel

    plan = recipe(["joint"], lora={"rank": 2})
    plan.stages[0].rates = {".lora_": 1e-2, **HEADS}
    folder = training.train(plan)
    saved = trained(Path(plan.out), "joint")
    assert any("lora_B" in name and value.abs().max() > 0 for name, value in saved.items())
    assert all(".lora_" in name or name.startswith(tuple(HEADS)) for name in saved)
    assert MediSeeModel.from_pretrained(folder).state_dict().keys() == (
        MediSeeModel.from_pretrained(start).state_dict().keys()
    )


def test_a_plan_tells_what_is_trained_and_trains_nothing(recipe, start, tmp_path):
    from medisee.model import MediSeeModel
    from medisee.training.planning import plan_stages

    plan = recipe(["localise", "align", "joint"], lora={"rank": 2})
    plan.stages[2].rates = {".lora_": 1e-3}
    localise, align, joint = plan_stages(plan)
    parts = dict(MediSeeModel.from_pretrained(start).named_parameters())
    whole = sum(value.numel() for value in parts.values())
    heads = sum(value.numel() for name, value in parts.items() if name.startswith(tuple(HEADS)))
    adapters = 2 * 2 * ((32 + 32) + (32 + 16))  # layers, rank, q_proj and v_proj
    assert localise.trained == heads
    assert joint.trained == adapters
    totals = {stage.trained + stage.frozen for stage in (localise, align, joint)}
    assert totals == {whole + adapters}
    assert localise.memory == 4 * (whole + adapters) + 12 * heads
    assert not (tmp_path / "run").exists()


def test_each_stage_trains_what_its_rates_name(recipe, start, tmp_path):
    from medisee.model import MediSeeModel

    before = dict(MediSeeModel.from_pretrained(start).named_parameters())
    for task in ("localise", "masks", "language"):
        context = training.prepare(recipe([task]))
        [stage] = recipe([task]).stages
        loop.run_stage(context, recipe([task]), stage, tmp_path / task)
        for name, value in context.model.named_parameters():
            moved = not torch.equal(value, before[name])
            if not any(name.startswith(prefix) for prefix in stage.rates):
                assert not moved, f"{task} moved {name}"
        assert any(
            not torch.equal(value, before[name]) for name, value in trained(tmp_path, task).items()
        )


def test_answers_are_supervised_whole_or_up_to_the_first_word_after_the_groups(recipe):
    from medisee.training.language import Language

    [stage] = recipe(["language"]).stages
    context = training.prepare(recipe(["language"]))
    task, processor = Language(context, stage), context.processor
    kinds = {record.kind: record for record in context.train_records if not record.history}
    assert {"implicit", "referring", "absent", "several"} <= kinds.keys()
    chosen = [(0, record) for record in kinds.values()]
    for explain in (True, False):
        batch = task._batch([0], chosen, explain)
        for row, (_, record) in enumerate(chosen):
            asked = processor.question_ids(record.question)
            answer = processor.answer_ids(record.answer, len(record.targets))
            if not explain and record.targets:
                groups = processor.group + processor.more * (len(record.targets) - 1)
                assert answer[: len(groups)] == groups
                answer = answer[: len(groups) + 1]
            length = len(asked) + len(answer)
            assert batch["input_ids"][row, :length].tolist() == asked + answer
            assert batch["attention_mask"][row].sum() == length
            labels = batch["labels"][row].tolist()
            assert labels[len(asked) : length] == answer
            assert set(labels[: len(asked)] + labels[length:]) <= {-100}


def test_the_word_after_each_group_is_a_loss_of_its_own(recipe):
    from medisee.training.language import Language

    [stage] = recipe(["language"]).stages
    context = training.prepare(recipe(["language"]))
    task, processor = Language(context, stage), context.processor
    kinds = {record.kind: record for record in context.train_records if not record.history}
    chosen = [(0, kinds[kind]) for kind in ("absent", "several", "implicit")]
    labels = task._batch([0], chosen, explain=True)["labels"]
    supervised = labels[:, 1:][labels[:, 1:] != -100]
    words = [supervised[place].item() for place in task._after_groups(labels, chosen)]
    several = kinds["several"]
    more = [processor.more[0]] * (len(several.targets) - 1)
    after = [processor.encode_text(f" {kinds[k].answer}")[0] for k in ("several", "implicit")]
    assert words == [*more, *after]


def test_the_reference_map_is_that_of_the_bare_label(recipe):
    """As inference gives it: another path through the same model."""
    from medisee.training.language import Language

    plan = recipe(["joint"])
    context = training.prepare(plan)
    model, processor, data = context.model.eval(), context.processor, context.train
    task = Language(context, plan.stages[0])
    chosen = [(0, next(r for r in context.train_records if len(r.targets) == 1))]
    row = data.row[chosen[0][1].image]
    truth = task._truth(data, [row], chosen)
    shown = context.shown(data, [row], [0], whole=True)
    found = task._reference_maps([row], truth, shown)
    assert not found.requires_grad
    image = model.encode_image(
        torch.tensor([processor.prefix_ids]),
        data.content[[row]],
        segmenter_embedding=data.features(row)[None],
    )
    asked = [processor.question_ids(chosen[0][1].targets[0].label)]
    [perceived] = model.perceive(
        image, asked, processor.group, processor.more, processor.openings, accept=0, max_targets=1
    )
    torch.testing.assert_close(found, perceived.targets.similarity)


def test_boxes_that_ignore_the_image_are_not_trained_on_crops(recipe, start, tmp_path):
    plan = recipe(["localise"])
    context = training.prepare(plan)
    context.model.config.box_decoder = "mlp"
    with pytest.raises(DataError, match="augment: 0"):
        loop.run_stage(context, plan, plan.stages[0], tmp_path / "localise")


def test_views_are_encoded_and_trained_on(recipe):
    plan = recipe(["masks"])
    context = training.prepare(plan.model_copy(update={"views": 2}))
    data = context.train
    assert data.pooled.shape[:2] == (len(data.images), 2)
    assert not torch.equal(data.features(0, 0), data.features(0, 1))
    assert context.val.pooled.shape[1] == 1


def test_the_image_encoder_is_trained_from_pixels_and_all_is_encoded_anew(
    recipe, start, tmp_path, monkeypatch
):
    from medisee.model import MediSeeModel

    finished, part = [], "segmenter.vision_encoder.neck"
    monkeypatch.setattr(training, "finish", lambda context, _: finished.append(context))
    plan = recipe(["masks", "localise"], precision="fp32")
    plan.stages[0].rates[part] = 1e-2
    training.train(plan)
    before = MediSeeModel.from_pretrained(start)
    saved, parts = trained(tmp_path / "run", "masks"), dict(before.named_parameters())
    assert any(n.startswith(part) and not torch.equal(v, parts[n]) for n, v in saved.items())
    [context] = finished
    data, pixels = context.train, torch.from_numpy(context.train.pixels(0, 0).pixels)[None]
    with torch.no_grad():
        now, old = (m.segmenter.encode(pixels)[0] for m in (context.model, before))
    assert (data.features(0) - now).abs().mean() < 0.2 * (data.features(0) - old).abs().mean()
    assert tmp_path.joinpath("run", "localise", "checkpoint").exists()


def test_heads_are_aligned_once(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "finish", lambda *_: None)
    training.train(recipe(["align"]))
    context = training.prepare(recipe(["align"]))
    before = dict(context.model.named_parameters())
    aligned = trained(tmp_path / "run", "align")
    moved = {name for name, value in aligned.items() if not torch.equal(value, before[name])}
    assert moved == {
        "projector.layers.0.weight", "projector.layers.0.bias",
        "box_decoder.query.weight", "box_decoder.query.bias",
    }  # fmt: skip
    categories = Categories.load(tmp_path / "run" / "align")
    assert categories is not None
    assert categories.read is not None
    training.train(recipe(["align"]))
    for name, value in trained(tmp_path / "run", "align").items():
        assert torch.equal(value, aligned[name])


@pytest.mark.parametrize("task", ["masks", "joint"])
def test_a_killed_run_goes_on_exactly_where_it_was(recipe, task, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "finish", lambda *_: None)
    training.train(recipe([task], steps=4, out=str(tmp_path / "whole")))
    step, original = [], loop.train_step

    def killing(*arguments):
        if len(step) == 3:  # a checkpoint was written after two
            raise KeyboardInterrupt
        step.append(1)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", killing)
        with pytest.raises(KeyboardInterrupt):
            training.train(recipe([task], steps=4, out=str(tmp_path / "killed")))
    seen = []
    monkeypatch.setattr(loop, "train_step", lambda *a: seen.append(a[-1]) or original(*a))
    training.train(recipe([task], steps=4, out=str(tmp_path / "killed")))
    assert seen == [2, 3]
    whole, resumed = trained(tmp_path / "whole", task), trained(tmp_path / "killed", task)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_finished_stage_is_not_run_again(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "finish", lambda *_: None)
    training.train(recipe(["localise"]))
    before = trained(tmp_path / "run", "localise")
    monkeypatch.setattr(loop, "train_step", None)
    training.train(recipe(["localise"]))
    for name, value in trained(tmp_path / "run", "localise").items():
        assert torch.equal(value, before[name])


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(recipe, tmp_path, monkeypatch):
    from medisee.training.tasks import Localise

    original = Localise.losses

    def losses(self, step, progress):
        found = original(self, step, progress)
        return {name: value * (float("nan") if step == 3 else 1) for name, value in found.items()}

    monkeypatch.setattr(Localise, "losses", losses)
    with pytest.raises(DataError, match="not finite at step 3"):
        training.train(recipe(["localise"], steps=6))
    state = json.loads((tmp_path / "run/localise/checkpoint/state.json").read_text())
    assert state == {"step": 2}
    assert all(torch.isfinite(v).all() for v in trained(tmp_path / "run", "localise").values())


def test_a_missing_weight_is_told_at_the_first_step(recipe):
    plan = recipe(["masks"])
    plan.stages[0].weights.pop("dice")
    with pytest.raises(DataError, match="dice"):
        training.train(plan)


def test_more_images_a_step_than_there_are(recipe, monkeypatch):
    monkeypatch.setattr(training, "finish", lambda *_: None)
    plan = recipe(["language"])
    plan.stages[0].batch = 50
    assert training.train(plan)


def test_features_are_computed_once(recipe, monkeypatch, tmp_path):
    from medisee.training.features import FeatureCache

    monkeypatch.setattr(training, "finish", lambda *_: None)
    filled, original = [], FeatureCache.fill
    monkeypatch.setattr(
        FeatureCache, "fill", lambda self, *a: filled.append(a[0]) or original(self, *a)
    )
    for _ in range(2):
        training.prepare(recipe(["localise"], cache=str(tmp_path / "features")))
    assert len(filled) == len(set(filled)) == 5


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"data": "no such folder"}, DataError, "no such folder"),
        ({"init": "no such model"}, ModelError, "no such model"),
    ],
)
def test_what_is_not_there_is_named(recipe, changes, error, words):
    with pytest.raises(error, match=words):
        training.train(recipe(["localise"], **changes))


def test_data_without_known_labels_is_refused(recipe, tmp_path):
    data = write_data(tmp_path / "odd", {}, extra={"train": "flux capacitor"})
    with pytest.raises(DataError, match="known label"):
        training.train(recipe(["localise"], data=str(data)))


def test_a_category_that_only_the_validation_split_has_is_left_out(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "finish", lambda *_: None)
    data = write_data(tmp_path / "more", extra={"val": "pancreas"})
    plan = recipe(["language"], data=str(data))
    assert training.train(plan)
    assert 0 <= measured(tmp_path, "language")["val_answered"] <= 1
