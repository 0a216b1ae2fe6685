"""Segmenter: prompts, masks in batches, and the way back to the original grid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny import randomise, segmenter_config
from transformers import SamConfig

from medisee.model import SegmenterConfig
from medisee.model.segmenter import Prompts, Segmenter, restore_masks


@pytest.fixture(params=["tinyvit", "sam"])
def segmenter(request):
    return randomise(Segmenter(segmenter_config(request.param))).eval()


def test_the_embedding_has_the_configured_size(segmenter):
    side = segmenter.config.embedding_size
    assert segmenter.encode(torch.rand(2, 3, 64, 64)).shape == (2, 32, side, side)


@torch.no_grad()
def test_masks_of_a_batch_equal_each_target_alone(segmenter):
    embedding = segmenter.encode(torch.rand(2, 3, 64, 64))[[0, 1, 1]]
    boxes = torch.tensor([[4.0, 8, 40, 60], [10, 10, 30, 20], [0, 0, 64, 64]])
    prompts = Prompts(boxes=boxes, text=torch.randn(3, 32))
    masks, quality = segmenter.decode(embedding, prompts)
    side = 4 * segmenter.config.embedding_size
    assert masks.shape == (3, side, side)
    for row in range(3):
        alone = Prompts(boxes=boxes[row : row + 1], text=prompts.text[row : row + 1])
        mask, iou = segmenter.decode(embedding[row : row + 1], alone)
        torch.testing.assert_close(masks[row : row + 1], mask, rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(quality[row : row + 1], iou, rtol=1e-3, atol=2e-4)


@torch.no_grad()
def test_the_mask_is_the_single_one_of_sam(segmenter):
    """The first of four mask tokens, as `multimask_output=False` has it."""
    embedding = segmenter.encode(torch.rand(1, 3, 64, 64))
    prompts = Prompts(text=torch.randn(1, 32))
    masks, _ = segmenter.decode(embedding, prompts)
    changed = randomise(Segmenter(segmenter.config)).eval()
    changed.mask_decoder.output_hypernetworks_mlps[1].proj_in.weight.zero_()
    assert torch.equal(masks, changed.decode(embedding, prompts)[0])
    changed.mask_decoder.output_hypernetworks_mlps[0].proj_in.weight.zero_()
    assert not torch.equal(masks, changed.decode(embedding, prompts)[0])


@pytest.mark.parametrize(
    "prompts, count",
    [
        (Prompts(text=torch.zeros(2, 32)), 1),
        (Prompts(boxes=torch.zeros(2, 4)), 2),
        (Prompts(boxes=torch.zeros(2, 4), text=torch.zeros(2, 32)), 3),
        (Prompts(points=torch.zeros(2, 5, 2), point_labels=torch.ones(2, 5)), 6),
        (
            Prompts(torch.zeros(2, 4), torch.zeros(2, 32), torch.zeros(2, 5, 2), torch.ones(2, 5)),
            8,
        ),
    ],
)
def test_number_of_sparse_embeddings(prompts, count):
    """Points without a box bring one padding point, as in SAM."""
    segmenter = Segmenter(segmenter_config())
    assert segmenter.sparse_embedding(prompts).shape == (2, count, 32)


def test_sparse_order_is_points_corners_text():
    segmenter = randomise(Segmenter(segmenter_config()))
    boxes, text = torch.tensor([[4.0, 8, 40, 60]]), torch.randn(1, 32)
    points, labels = torch.tensor([[[3.0, 5.0]]]), torch.tensor([[1]])
    whole = segmenter.sparse_embedding(Prompts(boxes, text, points, labels))[0]
    corners = segmenter.sparse_embedding(Prompts(boxes=boxes))[0]
    point = segmenter.sparse_embedding(Prompts(points=points, point_labels=labels))[0]
    torch.testing.assert_close(whole, torch.cat([point[:1], corners, text]))
    flipped = segmenter.sparse_embedding(Prompts(boxes=boxes[:, [2, 3, 0, 1]]))[0]
    assert not torch.allclose(corners, flipped, atol=1e-2)


# ---- back to the original grid -------------------------------------------------------------------


def test_restore_masks_cuts_the_padding_off():
    logits = torch.full((1, 16, 16), -5.0)
    logits[:, :8, :12] = 5.0  # the content: half of the height, three quarters of the width
    restored = restore_masks(logits, 64, (32, 48), (100, 150))
    assert restored.shape == (1, 100, 150)
    inner = restored[:, :87, :137]  # within one cell of the border, the padding shines through
    torch.testing.assert_close(inner, torch.full_like(inner, 5.0))


def test_restore_masks_is_differentiable_and_in_two_bilinear_steps():
    logits = torch.randn(2, 16, 16, requires_grad=True)
    restored = restore_masks(logits, 64, (40, 64), (25, 40))
    square = F.interpolate(logits[None], (64, 64), mode="bilinear", align_corners=False)
    expected = F.interpolate(square[:, :, :40], (25, 40), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(restored, expected)
    restored.sum().backward()
    assert logits.grad.abs().sum() > 0


# ---- the authors' numbers ------------------------------------------------------------------------


def prompt_segmenter(channels, size, patch):
    """A segmenter of which only the prompt encoder matters."""
    sam = SamConfig(
        vision_config={
            "image_size": size, "patch_size": patch, "num_pos_feats": channels // 2,
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "output_channels": channels, "mlp_dim": 16, "global_attn_indexes": [],
        },
        prompt_encoder_config={"image_size": size, "patch_size": patch, "hidden_size": channels},
        mask_decoder_config={
            "hidden_size": channels, "mlp_dim": 16, "num_attention_heads": 4,
            "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    return Segmenter(SegmenterConfig("sam", sam))


@torch.no_grad()
def set_prompt_weights(segmenter, gaussian, points, not_a_point=None):
    segmenter.shared_image_embedding.positional_embedding.copy_(gaussian)
    encoder = segmenter.prompt_encoder
    encoder.shared_embedding.positional_embedding.copy_(gaussian)
    for number, weight in points.items():
        encoder.point_embed[number].weight.copy_(weight)
    if not_a_point is not None:
        encoder.not_a_point_embed.weight.copy_(not_a_point)


@pytest.mark.parametrize("rounding", ["bf16", "fp32"])
def test_golden_corners_and_text(shared, rounding):
    golden = load_file(shared / "golden/heads.safetensors")
    segmenter = prompt_segmenter(64, 1024, 16)
    corners = {k: golden[f"w.prompt.point{k}"] for k in (2, 3)}
    set_prompt_weights(segmenter, golden["w.prompt.gaussian"], corners)
    boxes = golden[f"out.prompt.boxes_plus_half_{rounding}"] - 0.5
    text = golden["in.prompt.text_embed"][:, 0]
    sparse = segmenter.sparse_embedding(Prompts(boxes=boxes, text=text))
    expected = golden[f"out.prompt.sparse_{rounding}"]
    # Float32 rounding of "- 0.5 + 0.5" is up to 3e-5 px, which the sines of far boxes amplify.
    torch.testing.assert_close(sparse, expected, rtol=0, atol=1e-4)


def test_golden_read_prompts(shared):
    folder = shared / "golden/systems/read_points"
    golden = load_file(folder / "io.safetensors")
    weights = load_file(folder / "weights.safetensors")
    segmenter = prompt_segmenter(16, 128, 16)
    start = "prompt_encoder."
    set_prompt_weights(
        segmenter,
        weights[f"{start}pe_layer.positional_encoding_gaussian_matrix"],
        {k: weights[f"{start}point_embeddings.{k}.weight"] for k in range(4)},
        weights[f"{start}not_a_point_embed.weight"],
    )
    prompts = Prompts(
        text=golden["prompt.text_embeds"][0],
        points=golden["prompt.points"],
        point_labels=golden["prompt.labels"],
    )
    assert -1 in golden["prompt.labels"].tolist()[0]
    sparse = segmenter.sparse_embedding(prompts)
    torch.testing.assert_close(sparse, golden["prompt.sparse"], rtol=0, atol=1e-5)
