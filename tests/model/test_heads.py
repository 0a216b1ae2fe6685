"""Routers, box decoders and projector: by their formulas and by the authors' numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny import randomise, tiny_config
from torch import nn

from medisee.model.heads import (
    AdaptiveFusion,
    BoxDecoder,
    BoxMLP,
    CandidateRouter,
    GroundedBoxDecoder,
    MaskPromptProjector,
    heat_extent,
)


def test_router_weights_are_sigmoids_divided_by_their_sum():
    router = randomise(CandidateRouter(6, 3, 8))
    states = torch.randn(5, 3, 6)
    hidden = F.gelu(states.flatten(1) @ router.gate[0].weight.T + router.gate[0].bias)
    scores = (hidden @ router.gate[2].weight.T + router.gate[2].bias).sigmoid()
    expected = scores / scores.sum(dim=1, keepdim=True)
    torch.testing.assert_close(router(states), expected)
    assert not torch.allclose(expected, scores.softmax(-1), atol=1e-3)


@pytest.mark.parametrize("level", [-120.0, -1000.0, 1000.0])
def test_router_weights_are_finite_where_every_sigmoid_is_zero_or_one(level):
    """The authors' formula gives 0 / 0 when all logits lie below about -104."""
    router = CandidateRouter(4, 2, 8)
    nn.init.zeros_(router.gate[2].weight)
    nn.init.constant_(router.gate[2].bias, level)
    torch.testing.assert_close(router(torch.randn(3, 2, 4)), torch.full((3, 2), 0.5))


def fused(states, **changes):
    fusion = randomise(AdaptiveFusion(tiny_config(**changes)))
    return fusion, *fusion(states)


def test_soft_fusion_weighs_the_candidates_by_two_routers():
    states = torch.randn(4, 2, 32)
    fusion, h_seg, h_det = fused(states)
    torch.testing.assert_close(h_seg, (fusion.router_seg(states)[..., None] * states).sum(1))
    torch.testing.assert_close(h_det, (fusion.router_det(states)[..., None] * states).sum(1))
    assert not torch.allclose(h_seg, h_det, atol=1e-2)


def test_hard_fusion_gives_each_decoder_its_own_token():
    states = torch.randn(4, 2, 32)
    fusion, h_seg, h_det = fused(states, fusion="hard")
    assert torch.equal(h_det, states[:, 0])  # [BBOX] comes first
    assert torch.equal(h_seg, states[:, 1])
    assert not list(fusion.parameters())


def test_single_fusion_shares_the_one_state():
    states = torch.randn(4, 1, 32)
    _, h_seg, h_det = fused(states, num_candidates=1)
    assert torch.equal(h_seg, states[:, 0])
    assert torch.equal(h_det, states[:, 0])


def test_the_papers_box_decoder_looks_at_its_state_alone():
    decoder = randomise(BoxDecoder(tiny_config()))
    h_det = torch.randn(3, 32)
    boxes = decoder(h_det, torch.randn(3, 32, 16, 16), torch.ones(3, 2))
    assert torch.equal(boxes, decoder(h_det, torch.zeros(3, 32, 16, 16), torch.rand(3, 2)))
    assert ((boxes > 0) & (boxes < 1)).all()


@pytest.fixture
def grounded():
    config = tiny_config(box_decoder="grounded", grounding_layers=2)
    return randomise(GroundedBoxDecoder(config)).eval()


def test_the_grounded_box_decoder_looks_at_the_embedding(grounded):
    h_det, embedding = torch.randn(2, 32), torch.randn(2, 32, 16, 16)
    boxes = grounded(h_det, embedding, torch.ones(2, 2))
    assert boxes.shape == (2, 4)
    assert not torch.allclose(boxes, grounded(h_det, -embedding, torch.ones(2, 2)), atol=1e-3)
    assert not torch.allclose(boxes, grounded(-h_det, embedding, torch.ones(2, 2)), atol=1e-3)


def test_the_grounded_box_decoder_takes_a_pooled_embedding_too(grounded):
    h_det, embedding, content = torch.randn(2, 32), torch.randn(2, 32, 16, 16), torch.ones(2, 2)
    pooled = F.avg_pool2d(embedding, 4)
    whole = grounded(h_det, embedding, content)
    torch.testing.assert_close(grounded(h_det, pooled, content), whole)


def test_boxes_of_a_padded_image_are_relative_to_its_content(grounded):
    h_det, embedding = torch.randn(2, 32), torch.randn(2, 32, 16, 16)
    square = grounded(h_det, embedding, torch.ones(2, 2))
    content = torch.tensor([[1.0, 0.5], [0.25, 1.0]])
    scale = torch.cat([content, content], dim=1)
    torch.testing.assert_close(grounded(h_det, embedding, content) * scale, square)


def test_the_extent_of_a_heat_is_that_of_an_even_box():
    """A box of equally hot cells has its own centre and sides, up to the cells' own width."""
    heat = torch.full((2, 20, 20), -30.0)
    heat[0, 4:8, 2:12] = 30  # rows, columns
    heat[1, 19, 0] = 30
    extent = heat_extent(heat)
    expected = [7 / 20, 6 / 20, (10**2 - 1) ** 0.5 / 20, (4**2 - 1) ** 0.5 / 20]
    assert extent[0].tolist() == pytest.approx(expected, abs=1e-4)
    assert extent[1].tolist() == pytest.approx([0.025, 0.975, 0.001, 0.001], abs=1e-3)


def test_where_the_heat_lies_goes_into_the_box(grounded):
    h_det, embedding = torch.randn(2, 32), torch.randn(2, 32, 16, 16)
    square, heat = grounded.look(h_det, embedding)
    assert heat.shape == (2, 4, 4)
    grounded.heat.weight.data.neg_()
    other, cold = grounded.look(h_det, embedding)
    assert not torch.allclose(heat, cold)
    assert not torch.allclose(square, other, atol=1e-3)


def test_reset_gives_the_centred_box_of_half_the_side():
    mlp = randomise(BoxMLP(8, 16))
    x = torch.randn(3, 8)
    assert not torch.allclose(mlp(x), torch.full((3, 4), 0.5), atol=1e-2)
    mlp.reset()
    assert torch.equal(mlp(x), torch.full((3, 4), 0.5))


# ---- the authors' numbers ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(shared):
    return load_file(shared / "golden/heads.safetensors")


def weights(golden, prefix, rename=str):
    start = f"w.{prefix}."
    return {rename(n.removeprefix(start)): v for n, v in golden.items() if n.startswith(start)}


@pytest.fixture
def states(golden):
    """(8, 2, 64) in the order in which the routers take them: box first."""
    return torch.stack([golden["in.embed_bbox"], golden["in.embed_seg"]], dim=1)


@pytest.fixture
def golden_fusion(golden):
    config = tiny_config(mllm=_llama_of(64), router_hidden=1024)
    fusion = AdaptiveFusion(config)
    fusion.router_seg.load_state_dict(weights(golden, "router_seg"))
    fusion.router_det.load_state_dict(weights(golden, "router_box"))
    return fusion


def _llama_of(width):
    from medisee.model import SharedEncoderConfig

    return SharedEncoderConfig({"model_type": "llama", "hidden_size": width})


def test_golden_routers(golden, golden_fusion, states):
    for name, router in (
        ("router_seg", golden_fusion.router_seg),
        ("router_box", golden_fusion.router_det),
    ):
        expected = golden[f"out.{name}.weights_bbox_seg"]
        torch.testing.assert_close(router(states), expected, rtol=0, atol=2e-6)
        swapped = router(states.flip(1)).flip(1)
        assert (swapped - expected).abs().max() > 1e-2, "the order must matter"


def test_golden_fused_states(golden, golden_fusion, states):
    h_seg, h_det = golden_fusion(states)
    torch.testing.assert_close(h_seg, golden["out.router_seg.fused"], rtol=0, atol=1e-4)
    torch.testing.assert_close(h_det, golden["out.router_box.fused"], rtol=0, atol=1e-4)


def test_golden_box_mlp(golden):
    mlp = BoxMLP(64, 512)
    mlp.load_state_dict(weights(golden, "bbox_decoder"))
    boxes = mlp(golden["out.router_box.fused"])
    torch.testing.assert_close(boxes, golden["out.box_cxcywh"], rtol=0, atol=2e-6)


def test_golden_projector(golden):
    projector = MaskPromptProjector(64, 256)
    renamed = weights(golden, "text_hidden_fcs", lambda n: n.replace("0.", "layers.", 1))
    projector.load_state_dict(renamed)
    prompts = projector(golden["out.router_seg.fused"])
    torch.testing.assert_close(prompts, golden["out.text_embed"], rtol=0, atol=1e-4)
