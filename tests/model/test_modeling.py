"""The whole model on tiny random weights: shapes, batches, the cache, files, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import (
    ARCHITECTURES,
    QUESTIONS,
    group_of,
    images,
    more_of,
    plain_states,
    run,
    tiny_config,
    tiny_model,
)

from medisee.model import MediSeeConfig, MediSeeModel
from medisee.model.modeling import similarity_map
from medisee.model.points import similarity_points
from medisee.model.segmenter import Prompts
from medisee.packing import block_size, load_packed, pack, save_packed

KINDS = ["nano", "llava"]
CLOSE = {"rtol": 1e-3, "atol": 2e-4}
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
both_kinds = pytest.mark.parametrize("kind", KINDS)


def answered(model, *places):
    """The test questions in `places`, each with one group."""
    return [QUESTIONS[place] + group_of(model) for place in places]


def assert_located_close(located, others):
    """`located` holds the targets of `others`, in order."""
    for name, value in located.items():
        expected = torch.cat([other[name] for other in others])
        torch.testing.assert_close(value, expected, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


# ---- shapes --------------------------------------------------------------------------------------


@both_kinds
@every_architecture
def test_shapes(kind, name):
    model = tiny_model(kind, **ARCHITECTURES[name])
    rows = [*answered(model, 0, 1), QUESTIONS[2] + [50, 51]]
    batch = images(model)
    output = run(model, batch, rows, [0, 1, 1])
    side = 64 if kind == "nano" else 16
    assert output.logits.shape == (3, max(map(len, rows)), 100)
    assert output.target_question.tolist() == [0, 1]
    assert output.states.shape == (2, model.config.num_candidates, 32)
    assert output.image_states.shape == (2, model.config.image_seq_length, 32)
    located = output.located
    assert located.mask_logits.shape == (2, side, side)
    assert located.quality.shape == (2,)
    assert located.similarity.shape == (2, model.config.image_seq_length)
    assert located.h_seg.shape == located.h_det.shape == (2, 32)
    if model.config.box_decoder == "none":
        assert located.boxes is None
    else:
        assert located.boxes.shape == (2, 4)
        assert (located.boxes > 0).all()


def test_an_answer_without_group_has_no_targets():
    model = tiny_model()
    output = run(model, images(model), [QUESTIONS[0] + [50, 51]], [0])
    assert output.located is None
    assert len(output.target_question) == len(output.states) == 0


def test_logits_of_supervised_positions_are_those_before_each_label():
    model = tiny_model()
    batch, rows = images(model), answered(model, 0, 1)
    labels = torch.full((2, len(rows[0])), -100)
    labels[0, 5], labels[0, 6], labels[1, 3] = 7, 8, 9
    every = run(model, batch, rows, [0, 1]).logits
    some = run(model, batch, rows, [0, 1], labels=labels).logits
    torch.testing.assert_close(some, torch.stack([every[0, 4], every[0, 5], every[1, 2]]))


# ---- batches -------------------------------------------------------------------------------------


@both_kinds
@every_architecture
def test_a_batch_equals_each_question_alone(kind, name):
    model = tiny_model(kind, **ARCHITECTURES[name])
    batch, index = images(model), [0, 1, 1]
    rows = answered(model, 0, 1, 2)
    together = run(model, batch, rows, index)
    alone = [run(model, batch, [row], [place]) for row, place in zip(rows, index, strict=True)]
    torch.testing.assert_close(together.states, torch.cat([a.states for a in alone]), **CLOSE)
    assert_located_close(together.located, [a.located for a in alone])
    for row, single in enumerate(alone):
        torch.testing.assert_close(
            together.logits[row, : len(rows[row])], single.logits[0], **CLOSE
        )


@both_kinds
def test_several_questions_on_one_image_equal_separate_images(kind):
    """In states, logits, boxes, masks, and in what training learns from them."""
    model = tiny_model(kind)
    batch = images(model, 1)
    rows = answered(model, 0, 1, 2)
    shared = run(model, batch, rows, [0, 0, 0])
    learned = all_gradients(model, shared)
    batch.prefix_ids = batch.prefix_ids.repeat(3, 1)
    batch.content = batch.content.repeat(3, 1)
    batch.segmenter_pixel_values = batch.segmenter_pixel_values.repeat(3, 1, 1, 1)
    if batch.pixel_values is not None:
        batch.pixel_values = batch.pixel_values.repeat(3, 1, 1, 1)
    separate = run(model, batch, rows, [0, 1, 2])
    torch.testing.assert_close(shared.states, separate.states, **CLOSE)
    torch.testing.assert_close(shared.logits, separate.logits, **CLOSE)
    assert_located_close(shared.located, [separate.located])
    for name, value in all_gradients(model, separate).items():
        torch.testing.assert_close(learned[name], value, rtol=1e-3, atol=1e-5, msg=name)


def all_gradients(model, output):
    """Of all that is trained, from everything that a loss looks at."""
    model.zero_grad()
    located = output.located
    total = output.logits.square().mean() + located.mask_logits.square().mean()
    (total + located.boxes.square().mean() + located.similarity.square().mean()).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert any(n.startswith("mllm.") and g.abs().max() > 0 for n, g in found.items())
    return found


def test_question_and_image_both_matter():
    model = tiny_model()
    batch = images(model)
    rows = answered(model, 0, 1)
    output = run(model, batch, [*rows, rows[0]], [0, 0, 1])
    for name, value in output.located.items():
        assert not torch.allclose(value[0], value[1], atol=1e-3), f"{name} ignores the question"
        assert not torch.allclose(value[0], value[2], atol=1e-3), f"{name} ignores the image"


@both_kinds
def test_cached_prefix_equals_the_decoder_run_on_the_whole_sequence(kind):
    model = tiny_model(kind)
    batch = images(model)
    [row] = answered(model, 2)
    output = run(model, batch, [row], [1])
    last = plain_states(model, batch, 1, row)
    length = batch.prefix_ids.shape[1]
    torch.testing.assert_close(output.logits[0], model.text.logits(last[length:]), **CLOSE)
    torch.testing.assert_close(output.image_states[1], last[1 : length - 1], **CLOSE)
    places = [row.index(token) + length - 1 for token in model.config.candidate_token_ids]
    torch.testing.assert_close(output.states[0], last[places], **CLOSE)


# ---- where the targets are ---------------------------------------------------------------------


def test_the_similarity_map_is_a_dot_product_over_the_root_of_the_width():
    states, h_seg = torch.randn(2, 5, 16), torch.randn(2, 16)
    expected = [[float(states[t, n] @ h_seg[t]) / 4 for n in range(5)] for t in range(2)]
    torch.testing.assert_close(similarity_map(states, h_seg), torch.tensor(expected))


@torch.no_grad()
def test_box_prompts_of_a_padded_image_lie_within_its_content():
    model = tiny_model()
    states, embedding = torch.randn(1, 2, 32), torch.randn(1, 32, 16, 16)
    arguments = (states, embedding, torch.randn(1, 16, 32))
    content, box = torch.tensor([[0.75, 0.5]]), torch.tensor([[0.4, 0.6, 0.2, 0.8]])
    padded = model.locate(*arguments, content, prompt_boxes=box)
    scale = torch.cat([content, content], dim=1)
    square = model.locate(*arguments, torch.ones(1, 2), prompt_boxes=box * scale)
    torch.testing.assert_close(padded.mask_logits, square.mask_logits)
    other = model.locate(*arguments, torch.ones(1, 2), prompt_boxes=box)
    assert not torch.allclose(padded.mask_logits, other.mask_logits, atol=1e-3)
    # Given boxes prompt the mask decoder alone; the answer's box stays the predicted one.
    predicted = model.locate(*arguments, content)
    assert torch.equal(padded.boxes, predicted.boxes)
    assert not torch.allclose(padded.mask_logits, predicted.mask_logits, atol=1e-3)


@torch.no_grad()
def test_reads_points_are_those_of_the_similarity_map_within_the_content():
    model = tiny_model(mask_prompts="text+box+points")
    states, embedding = torch.randn(2, 2, 32), torch.randn(2, 32, 16, 16)
    content = torch.tensor([[0.75, 0.5], [1.0, 0.5]])
    located = model.locate(states, embedding, torch.randn(2, 16, 32), content)
    points, labels = similarity_points(located.similarity, content)
    assert 1 in labels
    centre, half = located.boxes[:, :2], located.boxes[:, 2:] / 2
    corners = torch.cat([centre - half, centre + half], dim=1)
    prompts = Prompts(
        corners * torch.cat([content, content], dim=1) * 64,
        model.projector(located.h_seg),
        points * 64,
        labels,
    )
    masks, quality = model.segmenter.decode(embedding, prompts)
    torch.testing.assert_close(located.mask_logits, masks)
    torch.testing.assert_close(located.quality, quality)


@torch.no_grad()
def test_without_decoding_there_are_boxes_and_no_masks():
    model = tiny_model()
    located = run(model, images(model), answered(model, 0), [0], decode=False).located
    assert located.boxes is not None
    assert located.similarity is not None
    assert located.mask_logits is None
    assert located.quality is None


# ---- refusals of the model itself ----------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("change", [-1, 1])
def test_another_number_of_placeholders_than_image_tokens_raises(kind, change):
    model = tiny_model(kind)
    batch = images(model, 1)
    count = model.config.image_seq_length + change
    batch.prefix_ids = torch.tensor([[5] + [1] * count + [6]])
    with pytest.raises(ValueError, match="image placeholders"):
        run(model, batch, answered(model, 0), [0])


def test_a_model_with_its_own_vision_tower_asks_for_its_pixels():
    model = tiny_model("llava")
    batch = images(model, 1)
    batch.pixel_values = None
    with pytest.raises(ValueError, match="pixel_values"):
        run(model, batch, answered(model, 0), [0])


@pytest.mark.parametrize(
    "rows",
    [
        [[10, 20, 91, 30]],
        [[10, 20, 91, 21, 90], [10, 20, 91, 30, 31]],
        [[10, 20, 91, 21, 91], [10, 20, 90, 21, 90]],
    ],
)
def test_an_incomplete_group_raises(rows):
    model = tiny_model()
    with pytest.raises(ValueError, match="incomplete group"):
        run(model, images(model), rows, [0] * len(rows))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"fusion": "mean"}, "fusion is 'mean'"),
        ({"box_decoder": "detr"}, "box_decoder is 'detr'"),
        ({"mask_prompts": "points"}, "mask_prompts is 'points'"),
        ({"num_candidates": 0}, "num_candidates"),
        ({"box_decoder": "none"}, "mask_prompts must be 'text'"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny_config(**changes)


# ---- files ---------------------------------------------------------------------------------------


def outputs(model):
    rows = answered(model, 0, 2)
    output = run(model.eval(), images(model), rows, [0, 1])
    return {"logits": output.logits, **output.located}


@both_kinds
@pytest.mark.parametrize("name", ["soft-grounded", "three-points", "single-none"])
def test_saved_and_loaded_it_gives_the_same_output_bit_for_bit(kind, name, tmp_path):
    model = tiny_model(kind, **ARCHITECTURES[name])
    before = outputs(model)
    model.save_pretrained(tmp_path)
    after = outputs(MediSeeModel.from_pretrained(tmp_path))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(value, after[key]), key


@both_kinds
def test_a_configuration_survives_its_file(kind, tmp_path):
    config = tiny_config(kind, compat={"box_prompt": "authors"}, detach_box=True)
    config.save_pretrained(tmp_path)
    loaded = MediSeeConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.image_seq_length == config.image_seq_length
    assert loaded.segmenter.sam_config.mask_decoder_config.layer_norm_eps == 1e-5


def test_packed_weights_load_alike_and_close_to_the_original(tmp_path):
    model = tiny_model(box_decoder="grounded")
    model.save_packed(tmp_path)
    first = outputs(MediSeeModel.from_pretrained(tmp_path))
    second = outputs(MediSeeModel.from_pretrained(tmp_path))
    for key, value in outputs(model).items():
        assert torch.equal(first[key], second[key]), key
        error = (first[key] - value).norm() / value.norm()
        assert 0 < error < 0.05, f"{key} is off by {error:.3f}"


def test_packing_keeps_each_number_within_half_a_step(tmp_path):
    model = tiny_model()
    model.save_packed(tmp_path)
    state = load_packed(tmp_path)
    for name, value in model.state_dict().items():
        if name == "mllm.lm_head.weight":
            continue
        if name.startswith("mllm.language_model.") and value.dim() == 2:
            assert pack({name: value.numpy()})[name].dtype == np.uint8
            blocks = value.view(len(value), -1, block_size(value.shape[1]))
            step = (blocks.abs().amax(dim=2, keepdim=True) / 127).expand_as(blocks)
            error = (torch.from_numpy(state[name]) - value).abs().view_as(blocks)
            assert (error <= 0.501 * step).all(), name
        else:
            assert state[name].shape == value.shape
            assert np.array_equal(state[name], value.half().float().numpy()), name


def test_packed_embeddings_and_head_stay_tied(tmp_path):
    tiny_model().save_packed(tmp_path)
    mllm = MediSeeModel.from_pretrained(tmp_path).mllm
    assert mllm.lm_head.weight is mllm.language_model.embed_tokens.weight


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage", ["missing", "shape", "unknown"])
def test_weights_that_do_not_fit_the_configuration_raise(packed, damage, tmp_path):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    state = {n: v for n, v in model.state_dict().items() if n != "mllm.lm_head.weight"}
    name = "projector.layers.2.weight"
    if damage == "missing":
        del state[name]
    elif damage == "shape":
        state[name] = state[name][:, :-1]
    else:
        state["surplus"] = torch.zeros(3)
    if packed:
        save_packed({name: value.numpy() for name, value in state.items()}, tmp_path)
    else:
        from safetensors.torch import save_file

        contiguous = {n: v.contiguous().clone() for n, v in state.items()}
        save_file(contiguous, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((ValueError, RuntimeError)):
        MediSeeModel.from_pretrained(tmp_path)


# ---- gradients -----------------------------------------------------------------------------------


def gradients(model, pick):
    """Names of the parameters that `pick(located)` reaches."""
    model.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    output = run(model, images(model), answered(model, 0, 1), [0, 1])
    pick(output.located).sum().backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().any()}


def reached(names, prefix):
    return any(name.startswith(prefix) for name in names)


@both_kinds
@pytest.mark.parametrize("box_decoder", ["mlp", "grounded"])
@pytest.mark.parametrize("detach", [False, True])
def test_the_mask_loss_reaches_the_box_decoder_unless_detached(kind, box_decoder, detach):
    model = tiny_model(kind, box_decoder=box_decoder, detach_box=detach)
    names = gradients(model, lambda located: located.mask_logits)
    assert reached(names, "box_decoder") is not detach
    assert reached(names, "fusion.router_det") is not detach
    for prefix in ("projector", "fusion.router_seg", "segmenter.mask_decoder", "mllm"):
        assert reached(names, prefix), prefix


def test_the_box_loss_reaches_the_language_model_and_no_mask_part():
    names = gradients(tiny_model(), lambda located: located.boxes)
    assert reached(names, "box_decoder")
    assert reached(names, "mllm.language_model")
    for prefix in ("projector", "fusion.router_seg", "segmenter"):
        assert not reached(names, prefix), prefix


@both_kinds
def test_no_loss_reaches_the_frozen_encoders(kind):
    model = tiny_model(kind, box_decoder="grounded", mask_prompts="text+box+points")
    names = gradients(
        model, lambda located: sum(value.sum() for value in located.values()).reshape(1)
    )
    assert not reached(names, "segmenter.vision_encoder")
    assert not reached(names, "mllm.model.vision_tower")
    assert reached(names, "mllm.projector" if kind == "nano" else "mllm.model.language_model")


def test_a_fresh_box_decoder_starts_in_the_middle():
    model = MediSeeModel(tiny_config(box_decoder="mlp")).eval()
    boxes = run(model, images(model), answered(model, 0, 1), [0, 1]).located.boxes
    assert torch.equal(boxes, torch.full((2, 4), 0.5))


def test_several_groups_in_one_answer_are_targets_in_order():
    model = tiny_model()
    batch = images(model)
    rows = [QUESTIONS[0] + group_of(model) + more_of(model), QUESTIONS[1] + group_of(model)]
    output = run(model, batch, rows, [0, 1])
    assert output.target_question.tolist() == [0, 0, 1]
    first = run(model, batch, answered(model, 0), [0])
    torch.testing.assert_close(output.states[:1], first.states, **CLOSE)
    assert not torch.allclose(output.states[0], output.states[1], atol=1e-2)
