"""The screening page's server: who gets which record, what is kept, and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")

from serve.screening_set import write_set
from starlette.testclient import TestClient

from medisee.data.sa_med2d import Index
from medisee.engine.verdicts import VerdictStore
from medisee.serve.screening import Queue, screening_app
from medisee.structures import QARecord, QATarget

BASE = "http://127.0.0.1"


@pytest.fixture
def folder(tmp_path):
    write_set(tmp_path, 12)
    return tmp_path


def make_queue(folder, overlap=0.0):
    store = VerdictStore(folder / "work" / "verdicts.jsonl")
    return Queue([folder / "train.jsonl"], Index.open(folder), store, overlap)


@pytest.fixture
def client(folder) -> Iterator[TestClient]:
    with TestClient(screening_app(make_queue(folder)), base_url=BASE) as client:
        yield client


def following(client, name, **wanted):
    return client.get("/v1/next", params={"name": name, **wanted}).json()


def judge(client, key, name, decision="keep", **words):
    body = {"id": key, "name": name, "decision": decision, **words}
    return client.post("/v1/verdicts", json=body)


def test_a_record_comes_with_what_the_page_shows(client):
    record = following(client, "Ada")["record"]
    assert record["question"]
    assert record["size"] == {"width": 24, "height": 16}
    [target] = record["targets"]
    assert target["mask"]["size"] == [16, 24]
    picture = client.get(f"/v1/records/{record['id']}/image.png")
    assert picture.content.startswith(b"\x89PNG")


def test_two_people_never_hold_the_same_record(client):
    ada, ben = (following(client, name)["record"]["id"] for name in ("Ada", "Ben"))
    assert ada != ben
    assert following(client, "Ada")["record"]["id"] == ada, "it is still hers"


def test_together_they_see_each_record_once(client):
    seen = []
    for turn in range(12):
        name = ("Ada", "Ben")[turn % 2]
        key = following(client, name)["record"]["id"]
        assert judge(client, key, name).status_code == 200
        seen.append(key)
    assert len(set(seen)) == 12
    assert following(client, "Ada")["record"] is None


def test_what_one_skips_goes_to_the_other(client):
    key = following(client, "Ada")["record"]["id"]
    judge(client, key, "Ada", "skip")
    assert following(client, "Ada")["record"]["id"] != key
    assert following(client, "Ben")["record"]["id"] == key


def test_shared_records_go_to_everybody_and_give_agreement(folder):
    with TestClient(screening_app(make_queue(folder, overlap=1.0)), base_url=BASE) as client:
        decisions = {"Ada": ["keep"] * 6 + ["drop"] * 6, "Ben": ["keep"] * 5 + ["drop"] * 7}
        for name, words in decisions.items():
            for word in words:
                record = following(client, name)["record"]
                assert record["shared"]
                progress = judge(client, record["id"], name, word).json()["progress"]
    [agreement] = progress["agreement"]
    assert (agreement["common"], agreement["same"]) == (12, 11)
    assert agreement["kappa"] == pytest.approx((11 / 12 - 0.5) / 0.5)


def test_verdicts_outlive_the_server(folder):
    with TestClient(screening_app(make_queue(folder)), base_url=BASE) as client:
        key = following(client, "Ada")["record"]["id"]
        judge(client, key, "Ada", "edit", question="Which one?", answer="That one.", note="clumsy")
    with TestClient(screening_app(make_queue(folder)), base_url=BASE) as client:
        assert following(client, "Ada")["record"]["id"] != key
        own = client.get(f"/v1/records/{key}", params={"name": "Ada"}).json()["record"]["own"]
    assert (own["decision"], own["question"], own["note"]) == ("edit", "Which one?", "clumsy")


def test_filters_choose_and_are_counted(client):
    facets = client.get("/v1/set").json()["facets"]
    assert facets["category"] == {"liver": 6, "spleen": 6}
    answer = following(client, "Ada", category="spleen")
    assert answer["record"]["targets"][0]["label"] == "spleen"
    assert answer["progress"]["total"] == 6
    assert following(client, "Ada", category="heart")["record"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"decision": "keep"},
        {"name": "  ", "decision": "keep"},
        {"name": "Ada", "decision": "maybe"},
        {"name": "Ada", "decision": "edit", "question": " "},
        {"name": "A\nda", "decision": "keep"},
    ],
)
def test_a_wrong_verdict_is_refused_and_nothing_is_kept(client, folder, body):
    key = following(client, "Ada")["record"]["id"]
    done = client.post("/v1/verdicts", json={"id": key, **body})
    assert done.status_code == 400
    assert done.json()["error"]["message"]
    assert not (folder / "work" / "verdicts.jsonl").exists()


def test_an_unknown_record_is_refused(client):
    assert judge(client, "nonsense", "Ada").status_code == 400


def test_an_image_that_cannot_be_read_is_said_and_can_be_dropped(client, folder):
    for image in (folder / "images").iterdir():
        image.write_bytes(b"no image")
    record = following(client, "Ada")["record"]
    assert "is not a readable image" in record["flaw"]
    assert judge(client, record["id"], "Ada", "drop").status_code == 200


def test_a_token_guards_records_but_not_the_page(folder):
    app = screening_app(make_queue(folder), token="secret")
    with TestClient(app, base_url=BASE) as client:
        assert client.get("/").status_code == 200
        assert client.get("/v1/set").status_code == 401
        given = {"Authorization": "Bearer secret"}
        assert client.get("/v1/set", headers=given).status_code == 200


def test_no_other_name_of_this_machine_is_answered(client):
    assert client.get("/v1/set", headers={"Host": "evil.example"}).status_code == 400


def test_a_verdict_cannot_come_from_a_form_of_another_page(client):
    key = following(client, "Ada")["record"]["id"]
    body = json.dumps({"id": key, "name": "Ada", "decision": "drop"})
    done = client.post("/v1/verdicts", content=body, headers={"Content-Type": "text/plain"})
    assert done.status_code == 400


def test_a_lease_ends(folder, monkeypatch):
    queue = make_queue(folder)
    clock = [0.0]
    monkeypatch.setattr("medisee.serve.screening.time.monotonic", lambda: clock[0])
    key = queue.next("Ada", {})
    assert queue.next("Ben", {}) != key
    clock[0] = 10_000.0
    assert queue.next("Cyd", {}) == key


def test_the_command_prints_a_summary_and_writes_the_screened_set(run, folder):
    queue = make_queue(folder, overlap=1.0)
    with TestClient(screening_app(queue), base_url=BASE) as client:
        for name in ("Ada", "Ben"):
            for decision in ("keep", "drop"):
                judge(client, following(client, name)["record"]["id"], name, decision)
    done = run("data", "screen", folder, "--summary")
    assert done.code == 0
    assert "Ada, Ben" in done.out
    assert "1.00" in done.out
    assert run("data", "screen", folder, "--write", folder / "screened.jsonl").code == 0
    lines = (folder / "screened.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["verdict"] for line in lines].count("keep") == 1
    assert len(lines) == 11


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["missing"], "is neither a built set nor a file of records"),
        (["train.jsonl", "--host", "0.0.0.0"], "--token"),
        (["train.jsonl", "--write", "train.jsonl"], "is the set itself"),
    ],
)
def test_what_cannot_be_screened_is_said_in_one_line(run, folder, monkeypatch, argv, line):
    monkeypatch.chdir(folder)
    done = run("data", "screen", *argv)
    assert done.code == 2
    assert line in done.err
    assert done.err.count("\n") == 1


def test_a_broken_record_is_named(run, folder):
    with (folder / "train.jsonl").open("a", encoding="utf-8") as out:
        out.write("{}\n")
    done = run("data", "screen", folder)
    assert done.code == 2
    assert "train.jsonl, line 13: is no question-answer record" in done.err


def test_the_set_of_these_tests_is_a_valid_one(folder):
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    records = [QARecord.model_validate_json(line) for line in lines]
    assert {type(target) for record in records for target in record.targets} == {QATarget}
