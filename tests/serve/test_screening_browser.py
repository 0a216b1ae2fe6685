"""The screening page in a real browser: keys, filters, two people, a server that goes away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")

from serve.page_browsing import Cable, Page, chromium
from serve.screening_set import write_set
from serve.serving import live

from medisee.data.sa_med2d import Index
from medisee.engine.verdicts import VerdictStore
from medisee.serve.screening import Queue, screening_app

pytestmark = pytest.mark.slow

ENTER, ESCAPE, LEFT, CONTROL = "\ue007", "\ue00c", "\ue012", "\ue009"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("downloads")) as page:
        yield page


@pytest.fixture
def screening(tmp_path: Path) -> Iterator[tuple[str, Path, Cable]]:
    """Address and verdict file of a server with 8 records that everybody judges; its cable."""
    write_set(tmp_path, 8)
    store = VerdictStore(tmp_path / "verdicts.jsonl")
    queue = Queue([tmp_path / "train.jsonl"], Index.open(tmp_path), store, overlap=1.0)
    with live(screening_app(queue)) as place:
        cable = Cable(place)
        yield cable.address, store.path, cable
        cable.close()


def start(page: Page, address: str, name: str) -> None:
    page.open(address)
    page.until("document.getElementById('name-dialog').open")
    page.keys(name, ENTER)
    page.until_shown("#marks .mark")


def decisions(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [json.loads(line)["decision"] for line in path.read_text("utf-8").splitlines()]


def ready(page: Page) -> None:
    """Waits until the page takes keys again: it does one thing at a time."""
    page.until("document.getElementById('panel').ariaBusy !== 'true'")


def press(page: Page, path: Path, key: str) -> None:
    """Presses the key of a verdict, and waits for it to be on the disk and for the next record."""
    before, question = len(decisions(path)), page.text("#question")
    ready(page)
    page.keys(key)
    page.until(f"document.getElementById('question').innerText !== {json.dumps(question)}"
               " || document.body.dataset.state === 'done'")  # fmt: skip
    assert len(decisions(path)) == before + 1


def test_a_queue_is_screened_with_keys_alone(page, screening):
    address, path, _ = screening
    start(page, address, "Ada")
    assert page.text(".facts .target") in ("liver", "spleen")
    first = page.text("#question")
    for key in "kds":
        press(page, path, key)
    assert decisions(path) == ["keep", "drop", "skip"]

    ready(page)
    page.keys("e")
    page.until("!document.getElementById('edit').hidden")
    page.keys(" Really?")
    page.keys(ESCAPE)
    page.until("document.getElementById('edit').hidden")
    page.keys("e")
    page.until("document.activeElement.id === 'edit-question'")
    page.keys(" Show it.")
    edited = page.text("#question")
    page.one("#edit-question").send_keys(CONTROL + ENTER)
    page.until(f"document.getElementById('question').innerText !== {json.dumps(edited)}")
    last = json.loads(path.read_text("utf-8").splitlines()[-1])
    assert (last["decision"], last["question"]) == ("edit", f"{edited} Show it.")

    for _ in range(4):
        before = page.text("#question")
        ready(page)
        page.keys(LEFT)
        page.until(f"document.getElementById('question').innerText !== {json.dumps(before)}")
    assert page.text("#question") == first
    assert "Kept by you before" in page.text("#earlier")
    press(page, path, "d")
    assert decisions(path)[-1] == "drop"
    assert page.problems() == []


def test_two_people_see_how_far_they_agree(page, screening):
    address, path, _ = screening
    for name, keys in (("Ada", "kkkkdddd"), ("Ben", "kkkddddd")):
        start(page, address, name)
        for key in keys:
            press(page, path, key)
        page.until("document.body.dataset.state === 'done'")
        page.js("localStorage.clear()")  # the next person comes
    assert "Ada and Ben: Cohen\u2019s kappa 0.75, the same on 7 of 8" in page.text("#agreement")
    assert "Nothing is left here" in page.text("#done")


def test_a_filter_chooses_what_comes(page, screening):
    address, _, _ = screening
    from selenium.webdriver.support.select import Select

    start(page, address, "Ada")
    for label in ("spleen", "liver"):
        Select(page.one("#filter-category")).select_by_value(label)
        page.until(f"document.querySelector('.facts .target').innerText === '{label}'")
    assert "of 4 judged" in page.text("#progress")
    page.js("localStorage.clear()")


def test_a_verdict_that_does_not_arrive_is_not_taken_for_given(page, screening):
    address, path, cable = screening
    start(page, address, "Ada")
    question = page.text("#question")
    cable.cut()
    page.keys("k")
    page.until_shown(".trouble")
    assert "cannot be reached" in page.text(".trouble")
    assert page.text("#question") == question
    assert decisions(path) == []
    cable.mend()
    press(page, path, "k")
    assert page.all(".trouble") == []
    page.js("localStorage.clear()")
