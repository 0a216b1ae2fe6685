from __future__ import annotations

import json

import pytest
import typer
from engine.scenes import ABDOMEN, CT, add_image, write_index
from typer.testing import CliRunner

from medisee.commands.data_build import build_data
from medisee.commands.data_stats import data_stats
from medisee.errors import DataError, InputError


@pytest.fixture
def call(tmp_path):
    app = typer.Typer()
    app.command("build")(build_data)
    app.command("stats")(data_stats)
    write_index(tmp_path / "data", [add_image(tmp_path / "data", "a", ABDOMEN, split="val", **CT)])

    def run(*argv):
        return CliRunner().invoke(app, list(map(str, argv)), catch_exceptions=True)

    return run


def test_build_then_stats(call, tmp_path):
    options = ("--out", tmp_path / "set", "--per-target", 4, "--workers", 1)
    done = call("build", tmp_path / "data", *options)
    assert done.exit_code == 0, done.output
    assert "card.md" in done.stdout and "liver" in done.stdout and "SHA-256" in done.stdout
    again = json.loads(call("build", tmp_path / "data", *options, "--json").stdout)
    shown = json.loads(call("stats", tmp_path / "set", "--json").stdout)
    assert again == shown and shown["kinds"]["val"]["implicit"] == 12
    assert "val" in call("stats", tmp_path / "set").stdout


def test_a_share_tells_that_others_are_missing(call, tmp_path):
    options = ("--out", tmp_path / "set", "--per-target", 2, "--workers", 1, "--shard", "2/2")
    assert "Share 2/2 is done" in call("build", tmp_path / "data", *options).stdout
    assert not (tmp_path / "set/train.jsonl").exists()


def test_a_script_is_replayed_and_what_it_lacks_is_told(call, tmp_path):
    texts = {
        "attribute": "the large gland that makes bile for the gut",
        "location": "the large gland above the right kidney in the image",
    }
    told = [
        {"perspective": perspective, "length": "short", "text": text}
        for perspective, text in texts.items()
    ]
    questions = [
        {"number": n, "question": f"Where is {item['text']}?", "answer": "It is the liver."}
        for n, item in enumerate(told, 1)
    ]
    lines = [
        {"stage": "describe", "label": "liver", "reply": {"descriptions": told}},
        {"stage": "transform", "label": "liver", "reply": {"questions": questions}},
    ]
    script = tmp_path / "script.jsonl"
    script.write_text("".join(json.dumps(line) + "\n" for line in (*lines, {"odd": 1})))
    options = ("--out", tmp_path / "set", "--per-target", 8, "--script", script)
    done = call("build", tmp_path / "data", *options)
    assert done.exit_code == 0, done.output
    assert "1 lines are no replies" in done.stderr
    assert "describe: the script has no reply" in done.stdout
    found = [json.loads(line) for line in (tmp_path / "set/val.jsonl").open()]
    own = [r["question"] for r in found if r["writer"] == "scripted"]
    assert own == [item["question"] for item in questions]


def test_two_writers_or_a_cluster_are_too_many(call, tmp_path):
    for more in (("--endpoint", "b"), ("--ray", "auto")):
        options = ("--out", tmp_path / "set", "--script", "a", *more)
        assert isinstance(call("build", tmp_path / "data", *options).exception, InputError)


def test_settings_that_are_not_there(call, tmp_path):
    options = ("--out", tmp_path / "set", "--endpoint", tmp_path / "none.yaml")
    done = call("build", tmp_path / "data", *options)
    assert isinstance(done.exception, DataError) and not (tmp_path / "set").exists()


def test_a_shard_that_is_none(call, tmp_path):
    done = call("build", tmp_path / "data", "--out", tmp_path / "set", "--shard", "0/2")
    assert isinstance(done.exception, InputError)
