"""Every system with tiny random weights, end to end: two questions on two images, no mask twice."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402
from tiny import (  # noqa: E402
    llava_config,
    randomise,
    save_nano,
    segmenter_config,
    tiny_tokenizer,
)
from tokenizers.processors import TemplateProcessing  # noqa: E402

from medisee.calibration import Calibration  # noqa: E402
from medisee.data.sa_med2d import Index  # noqa: E402
from medisee.errors import DataError, MediSeeError, ModelError  # noqa: E402
from medisee.evaluation import Selection, evaluate, make_pairs  # noqa: E402
from medisee.evaluation.systems import Setup, make_system  # noqa: E402
from medisee.evaluation.systems.cascade import cleaned, compose  # noqa: E402
from medisee.evaluation.systems.common import Found  # noqa: E402
from medisee.evaluation.systems.external import Worker  # noqa: E402
from medisee.model import SegmenterConfig  # noqa: E402
from medisee.model.segmenter import Segmenter  # noqa: E402
from medisee.structures import MedicalImage  # noqa: E402

BOXES = {"liver": (8, 10, 40, 50), "spleen": (30, 4, 60, 30)}


@pytest.fixture(scope="module")
def two_images(tmp_path_factory):
    """Two different pictures with a liver and a spleen each."""
    root, rng, lines = tmp_path_factory.mktemp("data"), np.random.default_rng(0), []
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for name in ("one", "two"):
        pixels = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((70, 60), Image.Resampling.BILINEAR).save(
            root / f"images/{name}.png"
        )
        masks = []
        for number, (label, (x1, y1, x2, y2)) in enumerate(BOXES.items()):
            mask = np.zeros((60, 70), np.uint8)
            mask[y1:y2, x1:x2] = 255
            file = f"masks/{name}--{number:04}_000.png"
            Image.fromarray(mask).save(root / file)
            masks.append({"file": file, "label": label})
        lines.append({"image": f"images/{name}.png", "modality": "CT", "split": "test",
                      "body_part": "abdomen", "masks": masks})  # fmt: skip
    (root / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Index.open(root)


def run(index, system, settings, folder):
    """The report of a system by key, or of one that is there."""
    selection = Selection()
    setup = Setup(index, "test", make_pairs(index, selection))
    make = (lambda: make_system(system, setup, settings)) if isinstance(system, str) else system
    report = evaluate(make, index, selection, folder)
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return report, [json.loads(line) for line in lines[1:]]


def masks_of(lines):
    return [json.dumps([finding["mask"] for finding in line["findings"]]) for line in lines]


def boxes_of(lines):
    return [json.dumps([finding["box"] for finding in line["findings"]]) for line in lines]


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory):
    """Folders of tiny random segmenters, as `medisee convert` writes them, by kind."""
    folders = {}
    for kind, encoder in (("medsam", "sam"), ("sam-med2d", "sam-med2d"), ("litemedsam", "tinyvit")):
        plain = segmenter_config("tinyvit" if encoder == "tinyvit" else "sam")
        config = SegmenterConfig(encoder, plain.sam_config, plain.tinyvit_config)
        folders[kind] = tmp_path_factory.mktemp(kind)
        config.save_pretrained(folders[kind])
        model = randomise(Segmenter(config), seed=4)
        save_file(model.state_dict(), folders[kind] / "model.safetensors")
    return folders


@pytest.fixture(scope="module")
def medisees(tmp_path_factory):
    """Folders of tiny MediSee models, by what they are."""
    kinds = {
        "medisee": {},
        "medisee+read": {"mask_prompts": "text+box+points"},
        "lisa-7b": {"num_candidates": 1, "box_decoder": "none", "mask_prompts": "text"},
    }
    folders = {}
    for key, changes in kinds.items():
        folders[key] = save_nano(tmp_path_factory.mktemp("model"), **changes)
        Calibration("isotonic", (0.0, 1.0), (0.0, 1.0), refuse_above=1.0).save(
            folders[key] / "calibration.json"
        )
    return folders


@pytest.mark.parametrize("key", ["medisee", "medisee-ft", "medisee+read", "lisa-7b", "lisa-13b"])
def test_the_medisee_family(key, two_images, medisees, tmp_path):
    kind = {"medisee-ft": "medisee", "lisa-13b": "lisa-7b"}.get(key, key)
    _, lines = run(two_images, key, {"model": str(medisees[kind])}, tmp_path)
    assert len(set(masks_of(lines))) == 4


def test_another_system_is_refused(two_images, medisees, tmp_path):
    with pytest.raises(DataError, match="is another system: its num_candidates is 2"):
        run(two_images, "lisa-7b", {"model": str(medisees["medisee"])}, tmp_path)


@pytest.mark.parametrize(
    ("key", "kind"),
    [("medsam-true-box", "medsam"), ("litemedsam-true-box", "litemedsam")],
)
def test_true_boxes(key, kind, two_images, segmenters, tmp_path):
    report, lines = run(two_images, key, {"segmenter": str(segmenters[kind])}, tmp_path)
    assert len(set(masks_of(lines))) == 4
    assert report.figures("referring")["box_iou"].value == 1.0


def test_a_segmenter_of_another_kind_is_refused(two_images, segmenters, tmp_path):
    with pytest.raises(DataError, match="not medsam"):
        settings = {"segmenter": str(segmenters["sam-med2d"])}
        run(two_images, "medsam-true-box", settings, tmp_path)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A tiny Grounding DINO, saved as transformers saves it."""
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        PreTrainedTokenizerFast,
        SwinConfig,
    )
    from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
        GroundingDinoImageProcessorPil,
    )

    folder = tmp_path_factory.mktemp("dino")
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2],
            window_size=4, out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=700, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=300,
        ),
        num_queries=6, encoder_layers=1, encoder_ffn_dim=16, encoder_attention_heads=2,
        decoder_layers=2, decoder_ffn_dim=16, decoder_attention_heads=2, d_model=32,
        num_feature_levels=4, disable_custom_kernels=True,
    )  # fmt: skip
    randomise(GroundingDinoForObjectDetection(config), seed=2).save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(
        folder
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer(), pad_token="<|im_end|>"
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["medsam", "sam-med2d"])
def test_grounding_dino(kind, two_images, dino, segmenters, tmp_path):
    settings = {"dino": str(dino), "segmenter": str(segmenters[kind]), "threshold": "0"}
    _, lines = run(two_images, f"grounding-dino+{kind}", settings, tmp_path)
    assert all(len(line["findings"]) == 1 for line in lines)
    assert len(set(masks_of(lines))) > 2
    settings["threshold"] = "1.0"
    report, lines = run(two_images, f"grounding-dino+{kind}", settings, tmp_path / "none")
    assert all(row.refused and row.overlap.dice == 0 for row in report.rows)


@pytest.fixture(scope="module")
def imis(shared, tmp_path_factory):
    """Settings of a tiny IMIS-Net under its official names."""
    tokenizer = tmp_path_factory.mktemp("clip") / "tokenizer.json"
    clip = tiny_tokenizer()
    clip.post_processor = TemplateProcessing(
        single="[S] $A [E]", special_tokens=[("[S]", 998), ("[E]", 999)]
    )
    clip.save(str(tokenizer))
    weights = shared / "golden/systems/imis_net/weights.safetensors"
    return {"segmenter": str(weights), "tokenizer": str(tokenizer)}


@pytest.mark.parametrize("key", ["imis-net", "imis-net-true-box"])
def test_imis_net(key, two_images, imis, tmp_path):
    report, lines = run(two_images, key, imis, tmp_path)
    assert len(set(masks_of(lines))) == 4
    if key.endswith("box"):
        assert report.figures("referring")["box_iou"].value == 1.0


# ---- processes and services ----------------------------------------------------------------------

WORKER = """
import json, sys
from zlib import crc32
import numpy as np
from PIL import Image
from medisee.structures import encode_rle
for line in sys.stdin:
    asked = json.loads(line)
    pixels = np.asarray(Image.open(asked["image"]).convert("L"))
    if "nothing" in asked["text"]:
        reply = {}
    else:
        mask = pixels > 60 + crc32(asked["text"].encode()) % 101
        reply = {"mask": encode_rle(mask), "score": 0.8}
    print(json.dumps(reply), flush=True)
"""
BOXES_ONLY = """
import json, sys
for line in sys.stdin:
    width = len(json.loads(line)["text"])
    print(json.dumps({"box": [1, 2, 3 + width, 20]}), flush=True)
"""


@pytest.fixture
def command(tmp_path):
    """`command(text)`: a command that runs a Python program."""

    def write(text):
        path = tmp_path / "worker.py"
        path.write_text(text)
        return f"{sys.executable} {path.as_posix()}"

    return write


def test_biomedparse_in_its_own_process(two_images, command, tmp_path):
    settings = {"command": command(WORKER)}
    _, lines = run(two_images, "biomedparse", settings, tmp_path / "out")
    assert len(set(masks_of(lines))) == 4
    assert {finding["score"] for line in lines for finding in line["findings"]} == {0.8}


def test_uni_med_gives_boxes_alone(two_images, command, tmp_path):
    report, lines = run(two_images, "uni-med", {"command": command(BOXES_ONLY)}, tmp_path / "out")
    assert len(set(boxes_of(lines))) > 1
    assert all(row.overlap.predicted > 0 for row in report.rows)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise SystemExit(3)", "ended with code 3"),
        ("print('loading the model', flush=True)\nimport time; time.sleep(9)", "no reply"),
        ("print('{\"box\": [1]}', flush=True)\nimport time; time.sleep(9)", "no reply"),
        ('print(\'{"mask": {"size": [1, 1], "counts": "01"}}\', flush=True)', "another size"),
    ],
)
def test_what_a_process_does_wrong_is_said(program, said, command):
    with pytest.raises(ModelError, match=said):
        Worker(command(program))(picture(), "liver")


def test_a_command_that_is_not_there():
    with pytest.raises(ModelError, match="cannot be started"):
        Worker("no-such-program --x")(picture(), "liver")


def picture(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (60, 70, 3), dtype=np.uint8)
    return MedicalImage(pixels, pixels, None, None, None, "x.png")


@pytest.fixture
def service():
    """An OpenAI-compatible endpoint: busy at first, then names something; keeps the requests."""
    heard = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.append(body)
            text = body["messages"][0]["content"][0]["text"]
            reply = {"content": "The spleen." if "spleen" in text else "Liver"}
            if "kidney" in text:
                reply = {"refusal": "I cannot help with that."}
            self.send_response(429 if len(heard) == 1 else 200)
            self.end_headers()
            if len(heard) > 1:
                self.wfile.write(json.dumps({"choices": [{"message": reply}]}).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", heard
    server.shutdown()
    server.server_close()


@pytest.fixture
def quick_cache(monkeypatch, tmp_path):
    pytest.importorskip("httpx")
    from medisee.evaluation.systems import namers

    monkeypatch.setattr(namers, "cache_folder", lambda: tmp_path / "cache")
    original = namers.ServiceNamer.__init__
    monkeypatch.setattr(
        namers.ServiceNamer,
        "__init__",
        lambda self, url, model: original(self, url, model, None, 0),
    )


def test_a_service_before_biomedparse(two_images, service, quick_cache, command, tmp_path):
    url, heard = service
    settings = {"endpoint": url, "namer": "gpt-4o", "command": command(WORKER)}
    _, lines = run(two_images, "gpt-4o+biomedparse", settings, tmp_path / "out")
    assert {line["text"] for line in lines} == {"Liver", "spleen"}
    assert len(set(masks_of(lines))) == 4
    assert len(heard) == 5  # one was busy
    first = heard[1]["messages"][0]["content"]
    assert first[0]["text"].startswith("The image is a CT. Someone asks: ")
    assert heard[1]["temperature"] == 0 and first[1]["image_url"]["url"].startswith(
        "data:image/png"
    )
    header = json.loads((tmp_path / "out/predictions.jsonl").read_text().splitlines()[0])
    assert "at most five words" in header["about"]["prompt"]
    run(two_images, "gpt-4o+biomedparse", settings, tmp_path / "again")
    assert len(heard) == 5  # kept


def test_a_service_that_refuses(service, quick_cache):
    from medisee.evaluation.systems.namers import ServiceNamer

    namer = ServiceNamer(service[0], "m")
    assert namer(picture(), "Where is the kidney?") == "none"


def test_a_chat_model_before_imis_net(two_images, imis, llava_folder, tmp_path):
    settings = {"namer": str(llava_folder), **imis}
    _, lines = run(two_images, "llava-med+imis-net", settings, tmp_path)
    assert len(lines) == 4 and any(line["text"] for line in lines)
    assert len(set(masks_of(lines))) >= 2


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory):
    """A tiny LLaVA with its processor, as transformers saves them."""
    from transformers import (
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = tiny_tokenizer()
    config = llava_config()
    config.image_token_id = tokenizer.token_to_id("<image>")
    config.text_config.vocab_size = tokenizer.get_vocab_size()
    config.text_config.eos_token_id = tokenizer.token_to_id("<|im_end|>")
    folder = tmp_path_factory.mktemp("llava")
    randomise(LlavaForConditionalGeneration(config), seed=1).save_pretrained(folder)
    template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endfor %}"
    )
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|im_end|>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    return folder


def test_none_is_a_refusal_and_the_phrase_is_cleaned(two_images):
    setup = Setup(two_images, "test", make_pairs(two_images, Selection()))
    heard = []

    def segment(image, phrase):
        heard.append(phrase)
        return Found(np.ones((60, 70), bool))

    system = compose(setup, "x", lambda image, prompt: "None.\n", segment)
    [answer] = system.open(picture()).ask(["Where?"])
    assert answer.refusal is not None and heard == []
    assert cleaned('\n"The left kidney".\nIt is red') == "left kidney"


def test_a_folder_without_a_model_is_said(two_images, segmenters, tmp_path):
    for key, settings in {
        "grounding-dino+medsam": {"dino": str(tmp_path), "segmenter": str(segmenters["medsam"])},
        "llava-med+biomedparse": {"namer": str(tmp_path), "command": "x"},
        "medsam-true-box": {"segmenter": str(tmp_path)},
    }.items():
        with pytest.raises(MediSeeError, match="holds no"):
            run(two_images, key, settings, tmp_path / "out")
