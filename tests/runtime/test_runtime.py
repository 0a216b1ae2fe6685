"""The runtime without torch equals the one with it, and needs no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny import save_nano

import medisee
from medisee.calibration import Calibration
from medisee.categories import Categories
from medisee.errors import MediSeeError, ModelError
from medisee.hub import GRAPHS, compiled

pytest.importorskip("onnxscript", reason="compiling needs the extra 'compile'")

from medisee.model import MediSeeModel
from medisee.runtime import compile as compiling

PICTURE = np.random.default_rng(0).integers(0, 256, (50, 80), dtype=np.uint8)
QUESTIONS = ["Which part makes bile?", "Where is it?", "And the largest organ here, if any?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny packed nano with graphs; its products are exact, so that it can be compared."""
    made = save_nano(tmp_path_factory.mktemp("models") / "tiny", box_decoder="grounded")
    MediSeeModel.from_pretrained(made).save_packed(made)
    (made / "model.safetensors").unlink()
    Calibration("isotonic", (0.0, 1.0), (0.0, 1.0), None).save(made / "calibration.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "ACCURACY", 0)
        compiling.compile_graphs(made)
    return made


@pytest.fixture(scope="module")
def runtimes(folder):
    return [medisee.load(str(folder), runtime=name).runtime for name in ("torch", "onnx")]


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder that a test may damage."""
    return shutil.copytree(folder, tmp_path / "copy")


def perceived(runtimes, questions, **options):
    """Raw answers of both runtimes about one image."""
    for runtime in runtimes:
        given = runtime.processor.segmenter_input(np.stack([PICTURE] * 3, axis=-1))
        ids = [runtime.processor.question_ids(question) for question in questions]
        yield runtime.perceive(runtime.encode(given), ids, **options)


def assert_alike(first, second):
    np.testing.assert_allclose(first.decision, second.decision, atol=1e-3)
    np.testing.assert_allclose(first.presence, second.presence, atol=1e-3)
    for name in ("boxes", "mask_logits", "quality", "similarity"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, atol=2e-2 * max(np.abs(one).max(), 1))


@pytest.mark.parametrize("questions", [QUESTIONS, QUESTIONS[:1], QUESTIONS[::-1] * 3])
def test_both_runtimes_perceive_alike(runtimes, questions):
    for first, second in zip(*perceived(runtimes, questions, accept=0.0), strict=True):
        assert first.mask_logits is not None
        assert_alike(first, second)


def test_both_runtimes_refuse_alike(runtimes):
    for first, second in zip(*perceived(runtimes, QUESTIONS, accept=2.0), strict=True):
        assert second.mask_logits is None
        assert_alike(first, second)


def test_both_runtimes_say_the_same(runtimes):
    for accept in (0.0, 2.0):
        raws = list(perceived(runtimes, QUESTIONS, accept=accept))
        texts = [
            [list(runtime.explain(raw, None)) for raw in answers]
            for runtime, answers in zip(runtimes, raws, strict=True)
        ]
        assert texts[0] == texts[1]
        assert all(texts[0])


def test_further_targets_are_opened_alike(runtimes):
    """With a threshold of nothing every answer opens as many groups as there may be."""
    torch_runtime, light = runtimes
    image = torch_runtime.processor.segmenter_input(np.stack([PICTURE] * 3, axis=-1))
    processor = torch_runtime.processor
    ids = [processor.question_ids(question) for question in QUESTIONS]
    wanted = torch_runtime.model.perceive(
        torch_runtime.encode(image), ids, processor.group, processor.more, processor.openings,
        accept=0.0, another=0.0,
    )  # fmt: skip
    found = light.perceive(light.encode(image), ids, accept=0.0, another=0.0)
    for one, other in zip(wanted, found, strict=True):
        assert len(other.presence) == 8
        assert_alike(torch_runtime._raw(one), other)


def test_a_batch_equals_each_question_alone(runtimes):
    light = runtimes[1:]
    [batch] = perceived(light, QUESTIONS, accept=0.0)
    for question, together in zip(QUESTIONS, batch, strict=True):
        [[alone]] = perceived(light, [question], accept=0.0)
        assert_alike(alone, together)


def test_sessions_and_streams_work_without_torch(folder):
    session = medisee.load(str(folder)).open(PICTURE)
    answers = session.ask(QUESTIONS)
    assert all(answer.text and answer.findings for answer in answers)
    answer, *pieces = medisee.load(str(folder)).open(PICTURE).stream(QUESTIONS[0])
    assert "".join(pieces) == answer.text == answers[0].text


def test_categories_and_phrases_are_used(copy):
    states = np.random.default_rng(0).standard_normal((2, 2, 32)).astype(np.float32)
    Categories(["liver", "spleen"], states).save(copy)
    sentences = {"liver": ["The liver makes bile."], "spleen": ["The spleen filters blood."]}
    refusals = ["Nothing is here.", "This cannot show it.", "That is odd.", "Please say more."]
    (copy / "phrases.json").write_text(json.dumps({"answers": sentences, "refusals": refusals}))
    for answer in medisee.load(str(copy)).open(PICTURE).ask(QUESTIONS):
        assert answer.text == " ".join(sentences[f.label][0] for f in answer.findings)


def test_both_runtimes_read_the_category_that_is_meant(copy):
    drawn = np.random.default_rng(0).standard_normal((2, 3, 2, 32)).astype(np.float32)
    Categories(["liver", "spleen", "heart"], *drawn).save(copy)
    models = [medisee.load(str(copy), runtime=name) for name in ("torch", "onnx")]
    runtimes = [model.runtime for model in models]
    for first, second in zip(*perceived(runtimes, QUESTIONS, accept=0.0), strict=True):
        assert_alike(first, second)
    (copy / "categories.safetensors").unlink()
    plain = [medisee.load(str(copy), runtime="onnx").runtime]
    [before] = perceived(plain, QUESTIONS, accept=0.0)
    assert np.abs(first.mask_logits - before[-1].mask_logits).max() > 1e-3


def test_one_copy_of_the_weights(folder):
    weights = (folder / "packed.safetensors").stat().st_size
    graphs = sum((folder / f"{name}.onnx").stat().st_size for name in GRAPHS)
    assert compiled(folder)
    assert graphs < 1_000_000  # nodes only
    assert not list(folder.glob("*.data"))
    assert weights > 0


@pytest.mark.parametrize("statement", [
    "import medisee; model = medisee.load({folder!r}); "
    "model.open(numpy.zeros((40, 40), numpy.uint8)).ask('Where is it?')",
    "from medisee.cli import main; "
    "sys.argv = ['medisee', 'ask', {image!r}, 'Where is it?', '--model', {folder!r}, "
    "'--out', {out!r}]; main()",
])  # fmt: skip
def test_asking_needs_no_torch(folder, tmp_path, statement):
    """Where torch cannot be imported at all, questions are answered."""
    from PIL import Image

    image, out = tmp_path / "image.png", tmp_path / "out"
    Image.fromarray(PICTURE).save(image)
    code = (
        "import sys, numpy\n"
        "for name in ('torch', 'transformers', 'onnx'): sys.modules[name] = None\n"
        + statement.format(folder=str(folder), image=str(image), out=str(out))
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- what can be wrong ---------------------------------------------------------------------------


def fails(folder, **options):
    with pytest.raises(MediSeeError) as caught:
        medisee.load(str(folder), **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_graphs_of_other_weights_are_refused(copy):
    other = save_nano(copy.parent / "other", box_decoder="grounded", grounding_layers=2)
    MediSeeModel.from_pretrained(other).save_packed(copy)
    assert "medisee compile" in fails(copy)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_missing_graph(copy, name):
    (copy / f"{name}.onnx").unlink()
    assert f"{name}.onnx" in fails(copy, runtime="onnx")
    assert medisee.load(str(copy)).runtime.model is not None  # torch is taken


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("damage", [b"", b"not a graph"])
def test_a_damaged_graph(copy, name, damage):
    (copy / f"{name}.onnx").write_bytes(damage)
    assert "medisee compile" in fails(copy)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : MatMulNBits(1)", "onnxruntime 1.22 or newer"),
        ("Fatal error: com.microsoft:MatMulNBits(-1) is not a registered function/op", "1.22"),
    ],
)
def test_an_onnxruntime_that_is_too_old(folder, monkeypatch, said, told):
    def refuse(*args, **kwargs):
        raise RuntimeError(said)

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    assert told in fails(folder)


def test_no_free_memory_when_loading_and_when_running(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("[ONNXRuntimeError] : 6 : std::bad_alloc")

    session = medisee.load(str(folder)).open(PICTURE)
    with monkeypatch.context() as patch:
        patch.setattr(session.model.runtime._language, "_session", Refusing(refuse))
        with pytest.raises(MemoryError):
            session.ask(QUESTIONS[0])
    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(MemoryError):
        medisee.load(str(folder))


class Refusing:
    def __init__(self, run):
        self.run = run


def test_a_truncated_weight_file(copy):
    file = copy / "packed.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert str(copy) in fails(copy)


def test_other_devices_and_runtimes(folder):
    assert "CPU" in fails(folder, device="cuda", runtime="onnx")
    assert "openvino or torch" in fails(folder, runtime="tensorrt")


def test_openvino_encodes_as_onnxruntime_does(folder, copy, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setattr("medisee.runtime.graphs.cache_folder", lambda: tmp_path / "cache")
    plain, other = (medisee.load(str(folder), runtime=name) for name in ("onnx", "openvino"))
    image = plain.processor.segmenter_input(np.repeat(PICTURE[..., None], 3, axis=2))
    expected, found = (m.runtime.encode(image).embedding for m in (plain, other))
    # Bfloat16, where the processor has it, keeps two to three digits.
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
    (copy / "encoder.onnx").write_bytes(b"not a graph")
    assert "medisee compile" in fails(copy, runtime="openvino")


def test_openvino_is_an_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "medisee[openvino]" in fails(folder, runtime="openvino")


def test_only_packed_nano_like_models_are_compiled(tmp_path):
    made = save_nano(tmp_path / "tiny")
    with pytest.raises(ModelError, match=r"packed\.safetensors"):
        compiling.compile_graphs(made)
