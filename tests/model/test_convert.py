"""Conversion: real key lists leave no rest, numbers arrive where they belong, and bad files are
named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import foreign
import pytest
import torch
from foreign import Whole, random_weights
from safetensors.torch import load_file, save_file
from tiny import images, llava_config, randomise, run
from transformers import LlavaForConditionalGeneration

from medisee.errors import ModelError
from medisee.model import MediSeeModel
from medisee.model.convert import convert, lay_out, writing
from medisee.model.convert.plan import make_plan
from medisee.model.convert.sizes import Beside
from medisee.model.segmenter import load_segmenter

TINY = Whole()
BESIDE = {
    "llm": {"num_attention_heads": 4, "max_position_embeddings": 512},
    "sam": {"decoder_heads": 4},
}


class Headers:
    """A weight file of which only names and shapes are known."""

    def __init__(self, shapes):
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}


def laid_out(*shapes, medsam=False, beside=None):
    files = {Path(f"{n}.bin"): Headers(each) for n, each in enumerate(shapes)}
    return lay_out(make_plan(files), beside or Beside(), [], medsam)


def parameters(layout):
    sizes = [torch.Size(piece.shape).numel() for piece in layout.pieces.values()]
    return sum(sizes)


# ---- real sizes, on the meta device --------------------------------------------------------------


@pytest.fixture(scope="module")
def real(shared):
    return json.loads((shared / "golden/keys_real.json").read_text(encoding="utf-8"))


def official(shared, system):
    text = (shared / f"golden/systems/{system}/keys_real.json").read_text(encoding="utf-8")
    keys = json.loads(text)
    return {name: facts["shape"] for name, facts in keys.get("keys", keys).items()}


def test_llava_meds_keys_leave_no_rest(real):
    layout = laid_out(real["llava_med_v15_mistral_7b_hf"])
    assert layout.kind == "llava"
    assert parameters(layout) == real["_counts"]["llava_med_v15_mistral_7b_hf"]["params"]
    text = layout.config.text_config
    assert text.model_type == "mistral"
    assert text.rope_parameters["rope_theta"] == 1e6
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (32, 8, 128)
    assert layout.config.vision_config.image_size == 336
    assert "CLIP ViT-L/14-336" in layout.notes[0]


def test_medsams_keys_leave_no_rest(real):
    layout = laid_out(real["medsam_vit_b_pth"], medsam=True)
    assert layout.kind == "segmenter"
    assert len(layout.pieces) == 315
    assert (layout.config.normalisation, layout.config.pad) == ("minmax", False)
    vision = layout.config.sam_config.vision_config
    assert vision.global_attn_indexes == [2, 5, 8, 11]
    assert (vision.window_size, vision.num_attention_heads, vision.image_size) == (14, 12, 1024)


@pytest.mark.parametrize("base_layer", [False, True])
def test_the_authors_keys_leave_no_rest(real, base_layer):
    keys = dict(real["medisee_peft_0.4.0_state_dict"])
    if base_layer:  # as peft 0.6 and later name them
        adapted = [n.replace(".lora_A.default", "") for n in keys if "lora_A" in n]
        assert len(adapted) == 64
        for name in adapted:
            keys[name.replace(".weight", ".base_layer.weight")] = keys.pop(name)
    layout = laid_out(keys)
    config = layout.config
    assert layout.kind == "medisee"
    assert config.candidate_token_ids == [32001, 32000]
    assert (config.router_hidden, config.box_hidden) == (1024, 512)
    assert config.compat == {"box_prompt": "authors"}
    assert sum(piece.lora is not None for piece in layout.pieces.values()) == 64


@pytest.mark.parametrize("system", ["sam_med2d", "litemedsam"])
def test_other_segmenters_keys_leave_no_rest(shared, system):
    layout = laid_out(official(shared, system))
    encoder = {"sam_med2d": "sam-med2d", "litemedsam": "tinyvit"}[system]
    assert layout.config.encoder == encoder
    assert layout.config.image_size == 256


def test_reads_own_layers_leave_no_rest(shared):
    keys = official(shared, "read_points") | foreign.llava(
        foreign.LLAMA_7B, foreign.CLIP_L_336, added=3, with_tower=False
    )
    layout = laid_out(keys, foreign.clip(foreign.CLIP_L_336))
    assert layout.config.mask_prompts == "text+points"
    assert layout.config.candidate_token_ids == [32000]


@pytest.mark.parametrize(
    "size, heads", [(foreign.SAM_B, 12), (foreign.SAM_L, 16), (foreign.SAM_H, 16)]
)
def test_sams_three_sizes(size, heads):
    config = laid_out(foreign.sam(size)).config
    assert (config.normalisation, config.pad) == ("imagenet", True)
    vision = config.sam_config.vision_config
    assert vision.num_attention_heads == heads
    assert tuple(vision.global_attn_indexes) == size.whole


@pytest.mark.parametrize("size", [foreign.LLAMA_7B, foreign.LLAMA_13B], ids=["7B", "13B"])
def test_lisas_sizes(size):
    whole = Whole(size, foreign.CLIP_L_224, foreign.SAM_H)
    layout = laid_out(foreign.lisa(whole), foreign.clip(foreign.CLIP_L_224))
    config = layout.config
    assert (config.fusion, config.box_decoder, config.mask_prompts) == ("single", "none", "text")
    assert config.candidate_token_ids == [32000]
    assert config.image_seq_length == 256
    assert config.mllm.text_config.num_attention_heads == size.heads
    assert config.mllm.text_config.model_type == "llama"


def test_a_llava_and_a_sam_make_a_fresh_medisee():
    llava = foreign.llava(foreign.MISTRAL_7B, foreign.CLIP_L_336)
    layout = laid_out(llava, foreign.sam(foreign.SAM_B), medsam=True)
    assert layout.kind == "medisee"
    assert layout.config.candidate_token_ids == [32001, 32000]
    assert layout.config.router_hidden == 1024
    assert layout.pieces["mllm.lm_head.weight"].shape == (32002, 4096)
    assert layout.config.compat == {}
    assert any("untrained" in note for note in layout.notes)


# ---- tiny sizes, with numbers --------------------------------------------------------------------


def write(folder, weights, name="pytorch_model.bin"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny_config.json").write_text(json.dumps(BESIDE), encoding="utf-8")
    if name.endswith(".safetensors"):
        save_file({n: v.contiguous().clone() for n, v in weights.items()}, folder / name)
    else:
        torch.save(weights, folder / name)
    return folder / name


def write_shards(folder, weights, count=3):
    names = sorted(weights)
    for n in range(count):
        part = {name: weights[name] for name in names[n::count]}
        write(folder, part, f"pytorch_model-{n + 1:05d}-of-{count:05d}.bin")
    return folder


def test_lora_is_merged_across_shards(tmp_path):
    weights = random_weights(foreign.with_lora(foreign.medisee(TINY)))
    done = convert([write_shards(tmp_path / "in", weights)], tmp_path / "out")
    assert done.kind == "medisee"
    state = load_file(tmp_path / "out/model.safetensors")
    start = "base_model.model.model.layers.1.self_attn.q_proj."
    product = weights[f"{start}lora_B.default.weight"] @ weights[f"{start}lora_A.default.weight"]
    expected = weights[f"{start}base_layer.weight"] + product * (16 / 4)
    found = state["mllm.model.language_model.layers.1.self_attn.q_proj.weight"]
    torch.testing.assert_close(found, expected)
    plain = weights["base_model.model.model.layers.1.self_attn.k_proj.weight"]
    assert torch.equal(state["mllm.model.language_model.layers.1.self_attn.k_proj.weight"], plain)


def test_the_converted_model_loads_and_runs(tmp_path):
    weights = random_weights(foreign.medisee(TINY))
    convert([write(tmp_path / "in", weights)], tmp_path / "out")
    model = MediSeeModel.from_pretrained(tmp_path / "out").eval()
    assert model.config.candidate_token_ids == [41, 40]
    batch = images(model, 1)
    batch.prefix_ids = torch.tensor([[5] + [0] * model.config.image_seq_length + [6]])
    with torch.no_grad():
        output = run(model, batch, [[7, 8, 9, 40, 10, 41, 11]], [0])
    assert output.located.mask_logits.isfinite().all()
    assert torch.equal(
        model.fusion.router_det.gate[0].weight, weights["model.router_box.gate.0.weight"]
    )


def test_every_number_of_a_sam_arrives_once(tmp_path):
    weights = random_weights(foreign.sam(TINY.sam))
    convert([write(tmp_path / "in", {"model": weights}, "sam.pth")], tmp_path / "out")
    state = load_file(tmp_path / "out/model.safetensors")
    found = sorted(float(value.double().sum()) for value in state.values())
    matrix = weights["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    wanted = [*weights.values(), matrix]  # the one matrix that has two places with us
    assert found == pytest.approx(sorted(float(value.double().sum()) for value in wanted))


def test_a_converted_segmenter_loads_and_converts_again(tmp_path):
    weights = random_weights(foreign.sam(TINY.sam, adapters=True))
    convert([write(tmp_path / "in", weights, "m.pth")], tmp_path / "once")
    (tmp_path / "once/tiny_config.json").write_text(json.dumps(BESIDE), encoding="utf-8")
    convert([tmp_path / "once"], tmp_path / "twice")
    first, second = (load_segmenter(tmp_path / name).eval() for name in ("once", "twice"))
    assert first.config.encoder == second.config.encoder == "sam-med2d"
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(first.encode(pixels), second.encode(pixels))


def transformers_4(name):
    name = name.replace("model.language_model.", "language_model.model.")
    name = name.replace("model.multi_modal_projector.", "multi_modal_projector.")
    name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
    return "language_model.lm_head.weight" if name == "lm_head.weight" else name


@pytest.mark.parametrize("rename", [str, transformers_4], ids=["5", "4"])
def test_llava_in_transformers_layout(rename, tmp_path):
    model = randomise(LlavaForConditionalGeneration(llava_config()))
    weights = {rename(name): value for name, value in model.state_dict().items()}
    source = write(tmp_path / "in", weights, "model.safetensors")
    (source.parent / "tiny_config.json").unlink()
    model.config.save_pretrained(source.parent)
    done = convert([source.parent], tmp_path / "out")
    assert done.titles == ("LLaVA in transformers' layout",)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_lisas_one_matrix_projector_gives_the_same_image_tokens(tmp_path):
    weights = random_weights(foreign.lisa(TINY)) | random_weights(foreign.tower(TINY.tower), 1)
    convert([write(tmp_path / "in", weights)], tmp_path / "out")
    model = MediSeeModel.from_pretrained(tmp_path / "out").eval()
    features = torch.randn(2, 5, TINY.tower.width)
    with torch.no_grad():
        found = model.mllm.model.multi_modal_projector(features)
    matrix = weights["model.mm_projector.weight"]
    expected = features @ matrix.T + weights["model.mm_projector.bias"]
    torch.testing.assert_close(found, expected)


def test_a_tower_given_apart_takes_the_place_of_the_one_inside(tmp_path):
    weights = random_weights(foreign.llava(TINY.language, TINY.tower))
    apart = random_weights(foreign.clip(TINY.tower), seed=5)
    sources = [write(tmp_path / "a", weights), write(tmp_path / "b", apart)]
    convert(sources, tmp_path / "out")
    state = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(
        state["model.vision_tower.embeddings.class_embedding"],
        apart["vision_model.embeddings.class_embedding"],
    )


def test_new_rows_of_the_vocabulary_are_the_mean_and_heads_are_the_same_each_time(tmp_path):
    llava = write(tmp_path / "a", random_weights(foreign.llava(TINY.language, TINY.tower)))
    sam = write(tmp_path / "b", random_weights(foreign.sam(TINY.sam)), "medsam.pth")
    for name in ("one", "two"):
        convert([llava, sam], tmp_path / name)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    embeddings = one["mllm.model.language_model.embed_tokens.weight"]
    assert embeddings.shape == (42, 32)
    torch.testing.assert_close(embeddings[41], embeddings[:40].mean(dim=0))
    assert all(torch.equal(one[name], two[name]) for name in one)
    config = json.loads((tmp_path / "one/config.json").read_text(encoding="utf-8"))
    assert config["segmenter"]["normalisation"] == "minmax"


def test_precision_shards_and_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD", 200_000)
    weights = random_weights(foreign.medisee(TINY))
    source = write(tmp_path / "in", weights)
    convert([source], tmp_path / "out", dtype="bf16")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    assert {value.dtype for value in load_file(files[0]).values()} == {torch.bfloat16}
    manifest = json.loads((tmp_path / "out/conversion.json").read_text(encoding="utf-8"))
    assert manifest["sources"] == ["medisee"]
    for path in [source, *files]:
        side = "source_files" if path == source else "files"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert manifest[side][path.name] == {"bytes": path.stat().st_size, "sha256": digest}
    loaded = MediSeeModel.from_pretrained(tmp_path / "out")
    assert len(loaded.state_dict()) == len(make_plan_of(source).pieces)


def make_plan_of(source):
    return make_plan({source: Headers({n: v.shape for n, v in torch.load(source).items()})})


def test_one_shard_at_a_time_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD", 9000)
    sizes = {f"w{n}": 4000 for n in range(7)}
    events = []

    def load(name):
        events.append(name)
        return torch.zeros(1000)

    writing.write_shards(sizes, load, tmp_path, events.append)
    assert [event for event in events if event.startswith("model-")] == [
        f"model-{n:05d}-of-00004.safetensors ({n} of 4)" for n in range(1, 5)
    ]
    assert events[:4] == [events[0], "w0", "w1", events[3]]  # the next two come after the first


# ---- bad input -----------------------------------------------------------------------------------


@pytest.fixture
def weights():
    return random_weights(foreign.medisee(TINY))


def refused(sources, tmp_path, words):
    with pytest.raises(ModelError, match=words):
        convert(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_missing_shard_is_named(weights, tmp_path):
    folder = write_shards(tmp_path / "in", weights)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    refused([folder], tmp_path, r"lacks pytorch_model-00002-of-00003.bin, one of 3 .*\(1 missing\)")


def test_a_shard_that_the_index_names_is_missed(weights, tmp_path):
    folder = write(tmp_path / "in", weights).parent
    index = {
        "weight_map": dict.fromkeys(weights, "pytorch_model.bin") | {"lm_head.weight": "b.bin"}
    }
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    refused([folder], tmp_path, "lacks b.bin, one of 2")


def test_a_missing_weight_is_named_with_its_shape(weights, tmp_path):
    del weights["model.layers.1.mlp.up_proj.weight"]
    words = r"1 weights are missing, first .*layers.1.mlp.up_proj.weight \[48, 32\]"
    refused([write(tmp_path / "in", weights)], tmp_path, words)


def test_a_wrong_shape_is_named_with_what_was_expected(weights, tmp_path):
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(47, 32)
    words = r"up_proj.weight has shape \[47, 32\], expected \[48, 32\]"
    refused([write(tmp_path / "in", weights)], tmp_path, words)


def test_an_unknown_key_is_named(weights, tmp_path):
    weights["model.visual_model.image_encoder.extra.weight"] = torch.zeros(3)
    words = "unknown key model.visual_model.image_encoder.extra.weight in pytorch_model.bin"
    refused([write(tmp_path / "in", weights)], tmp_path, words)


def test_two_checkpoints_in_one_are_refused(weights, tmp_path):
    write(tmp_path / "in", weights)
    write(tmp_path / "in", random_weights(foreign.sam(TINY.sam)), "other.pth")
    refused([tmp_path / "in"], tmp_path, "mixed checkpoints: image_encoder.* is of SAM")


def test_the_same_weight_twice_is_refused(weights, tmp_path):
    sources = [write(tmp_path / "a", weights), write(tmp_path / "b", weights, "again.bin")]
    refused(sources, tmp_path, "mixed checkpoints: .* in again.bin is in pytorch_model.bin too")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(weights, tmp_path, name, share):
    path = write(tmp_path / "in", weights, name)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused([path], tmp_path, f"{name} is (truncated or damaged|refused)")


class Trap:
    def __reduce__(self):
        return print, ("run by a pickle",)


def test_a_pickle_that_would_run_code_is_refused(weights, tmp_path, capsys):
    path = write(tmp_path / "in", {**weights, "trap": Trap()})
    refused([path], tmp_path, "holds more than weights")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "weights, words",
    [
        ({"a.weight": torch.zeros(2)}, "no checkpoint that can be converted .*first: a.weight"),
        ({}, "first: none at all"),
        (random_weights(foreign.clip(TINY.tower)), "alone is no model"),
        (random_weights(foreign.lisa(TINY)), "comes without its vision tower.*CLIP"),
    ],
    ids=["strange", "empty", "clip", "no-tower"],
)
def test_what_makes_no_model_is_refused(weights, words, tmp_path):
    refused([write(tmp_path / "in", weights)], tmp_path, words)


def test_a_lora_half_is_refused(tmp_path):
    weights = random_weights(foreign.with_lora(foreign.medisee(TINY)))
    del weights["base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"]
    refused([write(tmp_path / "in", weights)], tmp_path, "LoRA of .*q_proj.weight is incomplete")


def test_places_without_weights_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("x", encoding="utf-8")
    refused([tmp_path / "empty"], tmp_path, "holds no weight files")
    refused([tmp_path / "nowhere"], tmp_path, "no file or folder")
    refused([tmp_path / "note.txt"], tmp_path, "is no weight file")


def test_an_existing_folder_is_kept_unless_told(weights, tmp_path):
    source = write(tmp_path / "in", weights)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ModelError, match="exists; choose another folder or add --overwrite"):
        convert([source], tmp_path / "out")
    assert (tmp_path / "out/mine.txt").exists()
    convert([source], tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out/mine.txt").exists()


def test_a_failure_while_writing_leaves_nothing(weights, tmp_path, monkeypatch):
    source = write(tmp_path / "in", weights)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        convert([source], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
