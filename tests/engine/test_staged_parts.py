from __future__ import annotations

import hashlib
import json
import threading
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medisee.engine.staged.calls import CallLog, Kept, Script, Stopped, Unanswered
from medisee.engine.staged.endpoint import _retry_after
from medisee.engine.staged.pacing import Bucket, Budget, BudgetReachedError
from medisee.engine.staged.prompts import STAGES, parse, prompt, schema
from medisee.engine.staged.settings import read_settings
from medisee.errors import DataError

ENDPOINT = "writer: {url: 'http://127.0.0.1:1/v1', model: m"

# Of each prompt's text by its name. Another text is another version: count it up in the file.
TEXTS = {
    "caption-1": "f771c0a5dd6c",
    "describe-1": "68bd820f9d0a",
    "second_pass-1": "eae4967a903e",
    "review-1": "7f52787676f3",
    "transform-1": "09c46de1a11a",
}


@pytest.mark.parametrize("stage", STAGES)
def test_another_text_is_another_version(stage):
    text = (resources.files("medisee.engine") / "prompts" / f"{stage}.md").read_text("utf-8")
    assert TEXTS[prompt(stage).name] == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("stage", STAGES)
def test_schemas_are_strict_and_of_words_that_every_endpoint_knows(stage):
    def check(node):
        if node.get("type") == "object":
            assert node["additionalProperties"] is False
            assert sorted(node["required"]) == sorted(node["properties"])
        for child in (*node.get("properties", {}).values(), *node.get("$defs", {}).values()):
            check(child)

    check(schema(stage))
    assert "min" not in json.dumps(schema(stage)).lower()


def test_a_reply_may_stand_in_a_fence_and_behind_courtesies():
    text = 'Sure!\n```json\n{"caption": "A grey disc."}\n```\nAnything else?'
    assert parse("caption", text).caption == "A grey disc."


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (" ", "nothing"),
        ("I cannot", "not JSON"),
        ('{"caption": "cut', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"caption": ""}', "another form"),
        ('{"caption": "x", "more": 1}', "another form"),
    ],
)
def test_bad_replies_are_told_in_words_that_can_be_counted(text, what):
    with pytest.raises(ValueError, match=what):
        parse("caption", text)


@given(st.text())
@settings(max_examples=40)
def test_any_text_is_a_reply_or_a_told_fault(text):
    try:
        assert parse("caption", text)
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (ENDPOINT + ", api_key: sk-secret}", "writer.api_key"),
        (ENDPOINT + ", key_env: sk-secret}", "writer.key_env"),
        ("writer: {url: 'http://sk-secret:x@h/v1', model: m}", "writer.url"),
        ("writer: {url: sk-secret, model: m}", "writer.url"),
        (ENDPOINT + "}\nreviewer: sk-secret", "reviewer"),
        (ENDPOINT + "}\nbudget: 3", "price_in"),
        (ENDPOINT + ", tries: sk-secret}", "writer.tries"),
        ("writer: [sk-secret", "YAML"),
        ("- sk-secret", "settings"),
        ("", "settings"),
    ],
)
def test_settings_that_cannot_be_used_never_repeat_what_was_given(given, what, tmp_path):
    path = tmp_path / "writer.yaml"
    path.write_text(given)
    with pytest.raises(DataError, match=what) as told:
        read_settings(path)
    assert "sk-secret" not in str(told.value) and told.value.__cause__ is None


def test_the_key_comes_from_the_environment_and_shows_nowhere(tmp_path, monkeypatch):
    path = tmp_path / "writer.yaml"
    path.write_text(ENDPOINT + ", key_env: MY_KEY}")
    writer = read_settings(path).writer
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(DataError, match="not set"):
        writer.key()
    monkeypatch.setenv("MY_KEY", "sk-sécret")
    with pytest.raises(DataError, match="holds no key"):
        writer.key()
    monkeypatch.setenv("MY_KEY", " sk-secret\n")
    key = writer.key()
    assert key.get_secret_value() == "sk-secret" and "secret" not in f"{key!r} {writer!r}"


class Clock:
    """A clock that goes on when somebody waits on its event."""

    def __init__(self):
        self.now, self.waits = 0.0, []

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.waits.append(seconds)
        self.now += seconds
        return False

    def is_set(self):
        return False


def test_a_bucket_gives_ten_seconds_worth_at_once_and_then_the_rate():
    clock = Clock()
    bucket = Bucket(60, clock, clock)
    for _ in range(10):
        bucket.take(1)
    assert clock.waits == []
    bucket.take(5)
    assert clock.waits == [pytest.approx(5.0)]
    clock.now += 100
    bucket.take(10)
    assert len(clock.waits) == 1
    Bucket(None, clock, clock).take(1e9)


def test_who_waits_for_a_bucket_is_woken_by_the_stop():
    stop = threading.Event()
    bucket = Bucket(0.001, stop)
    bucket.take(1)
    stop.set()
    with pytest.raises(Stopped):
        bucket.take(1)


def kept(key="k", **fields):
    return Kept(stage="caption", image="a.png", reply="{}", key=key, **fields)


def test_a_budget_holds_back_what_is_under_way(tmp_path):
    log = CallLog(tmp_path / "calls.jsonl")
    budget = Budget(1.0, log)
    entered, waiting = threading.Event(), threading.Event()

    def other():
        waiting.set()
        with budget.hold(0.6):
            entered.set()

    with budget.hold(0.6):
        thread = threading.Thread(target=other)
        thread.start()
        assert waiting.wait(30) and not entered.wait(0.05)
        log.add(kept(cost=0.3))
    assert entered.wait(30)
    thread.join()
    with pytest.raises(BudgetReachedError, match="budget of 1 is reached"), budget.hold(0.8):
        pass
    with Budget(None, log).hold(1e9):
        pass


def test_a_budget_that_is_reached_says_so_however_sums_are_rounded(tmp_path):
    budget = Budget(1.0, CallLog(tmp_path / "calls.jsonl"))
    first, second, third = (budget.hold(amount) for amount in (0.1, 0.2, 0.3))
    for each in (first, second, third):
        each.__enter__()
    for each in (first, second, third):
        each.__exit__(None, None, None)
    assert 0.1 + 0.2 + 0.3 - 0.1 - 0.2 - 0.3 != 0
    with pytest.raises(BudgetReachedError), budget.hold(1.1):
        pass


def test_a_log_is_read_again_past_wrong_lines(tmp_path):
    path = tmp_path / "calls.jsonl"
    first = CallLog(path)
    first.add(kept("a", tokens=(3, 4), cost=0.5))
    with path.open("a") as out:
        out.write("nonsense\n\n" + kept("cut").model_dump_json(by_alias=True)[:40])
    second = CallLog(path)
    assert (second.flawed, second.calls, second.tokens, second.spent) == (2, 1, (3, 4), 0.5)
    second.add(kept("b"))
    second.add(kept("c"))
    third = CallLog(path)
    assert [third.find(key) is not None for key in ("a", "b", "c", "cut")] == [True] * 3 + [False]
    assert third.flawed == 2 and third.tells_of(kept().subject)


def test_a_script_has_lines_for_an_image_or_for_any(tmp_path):
    path = tmp_path / "script.jsonl"
    lines = [
        {"stage": "caption", "reply": {"caption": "any"}},
        {"stage": "caption", "image": "a.png", "reply": {"caption": "own"}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    script = Script(path)

    def ask(image, stage="caption"):
        call = type("Call", (), {"subject": (stage, image, "", 1, 0)})
        return json.loads(script.answer(call).text)["caption"]

    assert (ask("a.png"), ask("b.png"), script.stages) == ("own", "any", {"caption"})
    with pytest.raises(Unanswered, match="no reply"):
        ask("a.png", "review")


@pytest.mark.parametrize("content", [None, "", "nonsense\n"])
def test_a_script_without_replies(content, tmp_path):
    path = tmp_path / "script.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match="script"):
        Script(path)


def test_retry_after_is_seconds_or_a_date():
    assert _retry_after("7") == 7
    assert _retry_after("Wed, 01 Jan 2020 00:00:00 GMT") == 0
    assert _retry_after("Wed, 01 Jan 2200 00:00:00 GMT") > 1e6
    assert _retry_after("") == _retry_after("soon") == _retry_after("-3") == 0


def test_kept_lines_know_no_other_fields():
    with pytest.raises(ValidationError):
        Kept.model_validate({"stage": "caption", "reply": "", "odd": 1})
