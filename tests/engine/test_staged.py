from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine.scenes import ABDOMEN, CT, EYE, add_image, write_index

from medisee.cli import main
from medisee.data.mlmr_sd import check_records, read_records
from medisee.data.sa_med2d import ImageRecord, Index
from medisee.engine.build import Settings, build
from medisee.engine.staged import WriterSettings, endpoint_writer, estimate, scripted_writer
from medisee.engine.staged import calls as calls_room
from medisee.engine.staged import endpoint as endpoint_room
from medisee.errors import DataError

pytest.importorskip("httpx")
pytest.importorskip("tenacity")

SPLITS = ("train", "val", "test")
SERVER = Path(__file__).with_name("endpoint_server.py")
forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")


@pytest.fixture(scope="module")
def server():
    """A server process: `settings(name)` for a writer that asks it, `counts(name)` of its calls."""
    process = subprocess.Popen([sys.executable, SERVER], stdout=subprocess.PIPE, text=True)
    base = f"http://127.0.0.1:{int(process.stdout.readline())}"

    def settings(name, roles=(), budget=None, **fields):
        writer = {
            "url": f"{base}/{name}/v1", "model": "m", "backoff": 0.001, "price_in": 1.0,
            "price_out": 2.0, "concurrency": 3, "timeout": 20, "max_tokens": 500, **fields,
        }  # fmt: skip
        return WriterSettings(writer=writer, budget=budget, **dict.fromkeys(roles, "writer"))

    def counts(name):
        with urllib.request.urlopen(f"{base}/{name}") as reply:
            return json.load(reply)

    yield SimpleNamespace(settings=settings, counts=counts, base=base)
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    entries = [
        add_image(root, "belly", ABDOMEN, split="train", patient="John Doe", **CT),
        add_image(root, "eye", {"optic disc": (20, 30, 40, 50)}, split="val", **EYE),
        "nonsense",
    ]
    return write_index(root, entries)


def run(settings, data, out, per_target=16):
    writer, log = endpoint_writer(settings, data, out / "work")
    return build(data, out, Settings(per_target), writer=writer), log


def records_of(folder):
    return [r for split in SPLITS for r in read_records(folder / f"{split}.jsonl")]


def contents(folder):
    """Every file of the set that people use; the log of calls has its lines in any order."""
    files = [*folder.glob("*.*"), *(folder / "work").glob("*.*")]
    return {f.name: f.read_bytes() for f in files if f.name != "calls.jsonl"}


@pytest.fixture(scope="module")
def steady(server, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("steady")
    built, log = run(server.settings("steady-0"), data, out)
    return SimpleNamespace(out=out, stats=built.stats, log=log)


def test_sixteen_questions_in_two_passes_perspectives_and_lengths(steady, data):
    about = [r for r in records_of(steady.out) if r.kind == "implicit" and r.label == "liver"]
    balance = Counter((r.pass_, r.perspective, r.length) for r in about)
    kinds = [
        (p, v, n) for p in (1, 2) for v in ("attribute", "location") for n in ("short", "long")
    ]
    assert balance == dict.fromkeys(kinds, 2)
    assert len({r.question for r in about}) == 16
    assert all("liver" in r.answer and "liver" not in r.question for r in about)
    images = [entry for entry in Index.open(data).entries() if isinstance(entry, ImageRecord)]
    assert check_records(records_of(steady.out), images) > 4 * 16
    alone = [r for r in records_of(steady.out) if r.kind == "implicit" and "eye" in r.image]
    assert len(alone) == 16 and sum(r.perspective == "location" for r in alone) <= 0.4 * 16


def test_records_say_who_wrote_them_and_with_which_prompts(steady):
    made = {(r.pass_, r.writer, r.prompt_version) for r in records_of(steady.out)
            if r.kind == "implicit"}  # fmt: skip
    assert made == {
        (1, "endpoint:m", "describe-1+transform-1"),
        (2, "endpoint:m", "second_pass-1+transform-1"),
    }
    others = {r.writer for r in records_of(steady.out) if r.kind != "implicit"}
    assert others == {"offline"}


def test_prompts_tell_no_patient_and_no_file(steady, server):
    sent = json.dumps(server.counts("steady-0")["last"]["body"])
    assert "John" not in sent and "belly" not in sent and "png" not in sent


def test_a_second_run_asks_nothing(steady, server, data, tmp_path):
    paid = server.counts("steady-0")["paid"]
    (tmp_path / "work").mkdir()
    log = (steady.out / "work/calls.jsonl").read_bytes()
    (tmp_path / "work/calls.jsonl").write_bytes(log)
    run(server.settings("steady-0"), data, tmp_path)
    assert server.counts("steady-0")["paid"] == paid == 2 * 2 * 4
    assert contents(tmp_path) == contents(steady.out)
    assert (tmp_path / "work/calls.jsonl").read_bytes() == log


def test_the_log_of_a_build_is_a_script_of_it(steady, data, tmp_path):
    script = tmp_path / "script.jsonl"
    script.write_bytes(b"a wrong line\n" + (steady.out / "work/calls.jsonl").read_bytes() + b'{"st')
    writer, flawed = scripted_writer(script, data)
    build(data, tmp_path / "set", Settings(16), writer=writer)
    assert flawed == 2
    for split in SPLITS:
        name = f"{split}.jsonl"
        assert (tmp_path / "set" / name).read_bytes() == (steady.out / name).read_bytes()


def test_caption_and_second_reader_are_stages_of_their_own(server, data, tmp_path):
    built, log = run(server.settings("steady-1", ["captioner", "reviewer"]), data, tmp_path)
    stages = Counter(json.loads(line)["stage"] for line in (tmp_path / "work/calls.jsonl").open())
    assert stages == {"caption": 2, "describe": 4, "second_pass": 4, "review": 8, "transform": 8}
    assert built.stats.build["quarantined"] == {"review: dropped": 8}
    told = [json.loads(line) for line in (tmp_path / "work/quarantined.jsonl").open()]
    assert {entry["detail"] for entry in told} == {"vague"}
    versions = {r.prompt_version for r in records_of(tmp_path) if r.kind == "implicit"}
    assert "caption-1+describe-1+review-1+transform-1" in versions
    assert log.calls == 26


def test_a_caption_never_wins_over_the_labels(server, data, tmp_path):
    run(server.settings("steady-2", ["captioner"], concurrency=1), data, tmp_path, 2)
    asked = json.dumps(server.counts("steady-2")["last"]["body"])
    assert "tibia" not in asked  # no shin bone in an eye, whatever the caption says
    script = tmp_path / "work/calls.jsonl"
    assert "tibia" in script.read_text()


def test_images_go_along_by_choice(server, data, tmp_path):
    run(server.settings("steady-3", images=True), data, tmp_path, 2)
    content = server.counts("steady-3")["last"]["body"]["messages"][1]["content"]
    assert content[1]["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("mode", ["plain", "new"])
def test_older_and_newer_dialects(mode, server, data, tmp_path):
    built, _ = run(server.settings(f"{mode}-1"), data, tmp_path, 4)
    assert built.stats.build["quarantined"] == {}
    body = server.counts(f"{mode}-1")["last"]["body"]
    assert ("response_format" in body) == (mode == "new")
    if mode == "plain":
        assert "JSON object of this schema" in body["messages"][1]["content"]


def test_the_address_keeps_its_query_and_the_key_goes_where_azure_wants_it(
    server, data, tmp_path, monkeypatch
):
    monkeypatch.setenv("MY_KEY", "sk-secret-0123")
    settings = server.settings(
        "steady-4", key_env="MY_KEY", key_header="api-key",
        url=f"{server.base}/steady-4/openai?api-version=2",
    )  # fmt: skip
    run(settings, data, tmp_path, 1)
    last = server.counts("steady-4")["last"]
    assert last["path"] == "/steady-4/openai/chat/completions?api-version=2"
    assert last["headers"]["api-key"] == "sk-secret-0123"
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"sk-secret" in f.read_bytes()]


def test_the_command_tells_estimate_cost_and_what_was_not_written(
    server, data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MY_KEY", "sk-secret-0123")
    monkeypatch.setenv("COLUMNS", "200")
    yaml = tmp_path / "writer.yaml"
    yaml.write_text(
        f"writer: {{url: '{server.base}/naming-9/v1', model: m, key_env: MY_KEY, price_in: 2}}\n"
    )

    def call(*more):
        out = str(tmp_path / "set")
        argv = ["data", "build", str(data), "--out", out, "--endpoint", str(yaml), "--json", *more]
        with pytest.raises(SystemExit) as leaving:
            main([*argv, "--per-target", "2"])
        return leaving.value.code, *capsys.readouterr()

    code, out, err = call("--estimate")
    assert (code, err) == (0, "") and json.loads(out)["calls"]["transform"] == 4
    assert not (tmp_path / "set").exists()
    code, out, err = call()
    assert code == 0 and "secret" not in out + err
    assert json.loads(out)["build"]["quarantined"]["describe: names its target"] > 2
    assert "About 8 calls" in err and "tokens in" in err and "cost 0.0" in err
    assert "quarantined.jsonl says why" in " ".join(err.split())


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("refusing", "refused"),
        ("silent", "nothing"),
        ("short", "cut off"),
        ("naming", "names its target"),
    ],
)
def test_bad_replies_are_asked_for_again_then_quarantined(mode, reason, server, data, tmp_path):
    built, log = run(server.settings(f"{mode}-1"), data, tmp_path, 2)
    quarantined = built.stats.build["quarantined"]
    assert quarantined[f"describe: {reason}"] >= 3
    attempts = {json.loads(line)["attempt"] for line in (tmp_path / "work/calls.jsonl").open()}
    assert attempts == {0, 1, 2} and log.spent > 0
    lost = built.stats.left_out["the writer wrote no usable question about it"]
    assert lost["pairs"] >= 3
    pairs = built.stats.build["pairs"]
    assert (
        pairs["built"] + sum(n["pairs"] for n in built.stats.left_out.values()) == pairs["in all"]
    )


def test_nonsense_is_told_apart(server, data, tmp_path):
    built, _ = run(server.settings("nonsense-1"), data, tmp_path, 2)
    reasons = {reason.partition(": ")[2] for reason in built.stats.build["quarantined"]}
    assert reasons <= {"not JSON, or cut off", "JSON of another form than asked for"} and reasons


def test_a_busy_endpoint_is_asked_again_and_nothing_is_lost(server, data, tmp_path):
    built, log = run(server.settings("faulty-1"), data, tmp_path)
    counts = server.counts("faulty-1")
    assert counts["asked"] > counts["paid"] == log.calls
    assert not any(key.startswith("writer") for key in built.stats.build["quarantined"])


def test_what_an_endpoint_did_not_answer_is_asked_for_by_the_next_run(
    server, data, steady, tmp_path
):
    out = tmp_path / "set"
    built, log = run(server.settings("down-1", tries=2), data, out)
    assert log.calls == 0
    assert built.stats.build["quarantined"] == {"writer: the endpoint did not answer (503)": 4}
    assert built.stats.left_out["the writer wrote no usable question about it"]["pairs"] == 4
    assert len(list((out / "work/parts").glob("*.again"))) == 2
    run(server.settings("steady-5"), data, out)
    assert contents(out) == contents(steady.out)
    assert not list((out / "work/parts").glob("*.again"))


def test_a_dead_endpoint_ends_the_run(server, data, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint_room, "_SILENT", 1)
    with pytest.raises(DataError, match="in a row without a reply"):
        run(server.settings("down-2", tries=1, concurrency=1), data, tmp_path)


@pytest.mark.parametrize(("mode", "what"), [("locked", "key_env"), ("lost", "model")])
def test_a_wrong_key_or_model_ends_the_run_in_one_line(
    mode, what, server, data, tmp_path, monkeypatch
):
    monkeypatch.setenv("MY_KEY", "sk-secret-0123")
    with pytest.raises(DataError, match=what) as told:
        run(server.settings(f"{mode}-1", key_env="MY_KEY"), data, tmp_path)
    assert "secret" not in str(told.value)
    assert not (tmp_path / "train.jsonl").exists()


def test_a_budget_is_never_overdrawn_and_a_larger_one_goes_on(server, data, steady, tmp_path):
    whole = steady.log.spent
    with pytest.raises(DataError, match=r"budget of [0-9.e-]+ is reached"):
        run(server.settings("steady-6", budget=whole / 2), data, tmp_path)
    paid = server.counts("steady-6")["paid"]
    assert 0 < paid < steady.log.calls
    with pytest.raises(DataError, match="budget"):  # what was spent counts in every later run
        run(server.settings("steady-6", budget=whole / 2), data, tmp_path)
    assert server.counts("steady-6")["paid"] == paid
    _, log = run(server.settings("steady-6", budget=whole + 0.01), data, tmp_path)
    assert log.spent == pytest.approx(whole) and contents(tmp_path) == contents(steady.out)


def test_the_estimate_is_near_and_sends_nothing(server, data, steady, tmp_path):
    writer, _ = endpoint_writer(server.settings("steady-7"), data, tmp_path / "work")
    told = estimate(writer, data, 16)
    assert sum(told.calls.values()) == steady.log.calls == 16
    assert told.tokens_in == pytest.approx(steady.log.tokens[0], rel=0.35)
    assert told.cost > 0 and "asked" not in server.counts("steady-7")
    assert not (tmp_path / "work").exists()


def test_no_room_no_call(server, data, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(endpoint_room.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="make room"):
        run(server.settings("steady-8"), data, tmp_path)
    assert "asked" not in server.counts("steady-8")


@forking
def test_a_full_disk_costs_at_most_what_was_under_way(server, data, steady, tmp_path):
    """A limit on the size of files stands for the disk: writing fails in the midst of a line."""
    import resource

    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (7000, 7000))
        try:
            run(server.settings("steady-9"), data, tmp_path)
        except OSError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    _, log = run(server.settings("steady-9"), data, tmp_path)
    assert contents(tmp_path) == contents(steady.out)
    counts = server.counts("steady-9")
    assert counts["paid"] == log.calls == 16 and counts.get("repeated", 0) <= 3


def kill_at_random(server, data, tmp_path, name, kills, seed):
    """Builds and is killed, each time some calls later; then to the end. Gives the counts."""
    dice = random.Random(seed)
    settings = server.settings(name)
    for number in range(kills):
        goal = server.counts(name).get("asked", 0) + dice.randint(1, 4)
        child = os.fork()
        if child == 0:
            run(settings, data, tmp_path)
            os._exit(0)
        while server.counts(name).get("asked", 0) < goal and not os.waitpid(child, os.WNOHANG)[0]:
            time.sleep(0.002)
        time.sleep(dice.random() * 0.01)
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it was done
        # What a kill can cost is what was on its way; there are three calls at the same time.
        assert server.counts(name).get("repeated", 0) <= 3 * number
    _, log = run(settings, data, tmp_path)
    counts = server.counts(name)
    assert counts["paid"] == log.calls
    assert not list(tmp_path.rglob("work/parts/*.partial"))
    return counts


@forking
def test_killed_at_random_moments_nothing_is_paid_twice(server, data, steady, tmp_path):
    counts = kill_at_random(server, data, tmp_path, "slow-1", 4, 0)
    assert contents(tmp_path) == contents(steady.out)
    assert counts["paid"] == steady.log.calls


@forking
@pytest.mark.slow
def test_killed_at_twenty_moments_with_a_faulty_endpoint(server, data, tmp_path):
    run(server.settings("faulty-2"), data, tmp_path / "whole")
    counts = kill_at_random(server, data, tmp_path / "killed", "faulty-3", 20, 1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert counts["paid"] == server.counts("faulty-2")["paid"]


@forking
def test_a_line_cut_off_by_a_kill_is_asked_for_again_and_no_other(server, data, steady, tmp_path):
    settings = server.settings("steady-10")
    run(settings, data, tmp_path)
    path = tmp_path / "work/calls.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    for part in (tmp_path / "work/parts").iterdir():
        part.unlink()
    _, log = run(settings, data, tmp_path)
    assert log.flawed == 1 and contents(tmp_path) == contents(steady.out)
    assert server.counts("steady-10")["repeated"] == 1
    assert calls_room.CallLog(path).calls == 16
