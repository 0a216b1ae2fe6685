"""SAM-Med2D and IMIS-Net give the official implementations' numbers on tiny random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from medisee.evaluation.systems.boxed import SamMed2D, load_box_segmenter  # noqa: E402
from medisee.evaluation.systems.imis_net import (  # noqa: E402
    _MAP,
    IMISNet,
    ImisSegmenter,
    _as_sam,
    square_input,
)
from medisee.model.convert import convert  # noqa: E402
from medisee.structures import MedicalImage  # noqa: E402


def medical(pixels):
    return MedicalImage(pixels, pixels, None, None, None, "x.png")


@pytest.fixture(scope="module")
def golden(shared):
    def read(name):
        folder = shared / "golden/systems" / name
        config = json.loads((folder / "config.json").read_text())
        return folder, load_file(folder / "io.safetensors"), config

    return read


@pytest.fixture(scope="module")
def sam_med2d(golden, tmp_path_factory):
    folder, io, config = golden("sam_med2d")
    target = tmp_path_factory.mktemp("converted") / "model"
    convert([folder / "weights.safetensors"], target)
    return load_box_segmenter("sam-med2d", target), io, config["run"]["cases"]


@pytest.mark.parametrize("case", ["small", "wide", "mixed"])
def test_sam_med2d(sam_med2d, case):
    segment, io, cases = sam_med2d
    assert isinstance(segment, SamMed2D)
    image = io[f"image.{case}"].numpy()
    prepared = torch.from_numpy(segment.prepare(image).pixels)[None]
    wanted = io.get(f"pred.{case}.input_sub8")
    if wanted is None:
        wanted = io[f"pred.{case}.input"][:, :, 3::8, 3::8]
    assert torch.equal(prepared[:, :, 3::8, 3::8], wanted)
    if (official := io.get(f"pred.{case}.image_embedding")) is not None:
        embedding = segment.segmenter.encode(prepared)
        torch.testing.assert_close(embedding, official, rtol=0, atol=1e-4)
    mask = segment(medical(image), cases[f"pred.{case}"]["box_xyxy_original_pixels"])
    official = io[f"pred.{case}.box.multi.mask"][0].numpy() > 0
    assert np.count_nonzero(mask != official) <= 2 and official.any()


@pytest.fixture(scope="module")
def imis(golden):
    folder, io, _ = golden("imis_net")
    return IMISNet.from_state(load_file(folder / "weights.safetensors"), text_heads=4), io


def test_imis_net(imis):
    net, io = imis
    image = io["image"].numpy()
    pixels = torch.from_numpy(square_input(image, 256))[None]
    assert torch.equal(pixels[:, :, ::2, 1::2], io["input_sub2"])
    with torch.no_grad():
        embedding = net.encode(pixels)
        torch.testing.assert_close(embedding, io["enc.image_embedding"], rtol=0, atol=1e-4)
        box = io["prompt.box256"][0, 0]
        texts = []
        for row in range(2):
            count = int(io["text.attention_mask"][row].sum())
            texts.append(net.embed_text(io["text.input_ids"][row : row + 1, :count].long()))
        wanted = io["text.embedding_after_text_out_dim"]
        torch.testing.assert_close(torch.stack(texts), wanted[:2], rtol=0, atol=1e-4)
        cases = {"box": (box, None), "text0": (None, texts[0]), "text1": (None, texts[1]),
                 "text0_box": (box, texts[0])}  # fmt: skip
        for name, (where, text) in cases.items():
            masks, quality = net.decode(embedding, where, text)
            near = {"rtol": 0, "atol": 2e-4}
            torch.testing.assert_close(masks, io[f"case.{name}.low_res3"][0], **near)
            torch.testing.assert_close(quality, io[f"case.{name}.iou3"][0], rtol=0, atol=1e-4)


def test_imis_net_masks(imis):
    net, io = imis
    segmenter, image = ImisSegmenter(net, None), medical(io["image"].numpy())
    for row in range(2):
        count = int(io["text.attention_mask"][row].sum())
        mask = segmenter.segment(image, ids=io["text.input_ids"][row, :count].tolist())
        assert np.array_equal(mask, io[f"case.text{row}.mask"].numpy() > 0)


@pytest.mark.parametrize("name", ["imis_net"])
def test_every_official_key_has_its_place(golden, name):
    folder, _, _ = golden(name)
    keys = json.loads(Path(folder / "keys_real.json").read_text())
    assert [key for key in keys if _MAP.translate(_as_sam(key)) is None] == []
