"""The page in a real browser: the whole path with nano, and bad days."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")

from serve.page_browsing import PATIENCE, Cable, Page, chromium
from serve.serving import SlowModel, live, png

from medisee.examples import example_path
from medisee.serve.app import create_app
from medisee.serve.errors import ServeError
from medisee.structures import encode_rle
from medisee.testing import FakeModel

pytestmark = pytest.mark.slow

ENTER, ESCAPE = "\ue007", "\ue00c"


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def page(downloads: Path) -> Iterator[Page]:
    with chromium(downloads) as page:
        yield page


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "scan.png"
    path.write_bytes(png(48, 64))
    return str(path)


def address(place: tuple[str, int]) -> str:
    return f"http://{place[0]}:{place[1]}/"


def give(page: Page, file: str) -> None:
    """Chooses a file, as the file dialog would."""
    page.one("#file").send_keys(file)


def ask(page: Page, question: str) -> None:
    page.one("#question").send_keys(question + ENTER)


def test_the_whole_path_on_a_real_image(page, downloads):
    """Mask before words; outline and size on focus; rounds; map; comparison; download."""
    from medisee.predictor import load

    with live(create_app(load("nano"))) as place:
        page.open(address(place))
        page.until_shown(".example", 5)
        give(page, str(example_path("abdomen-mr")))
        page.until("document.body.dataset.state === 'open'")
        assert "MR" in page.text("#what")
        assert page.text("#edge-left") == "R"
        page.js(
            "new MutationObserver(() => (window.wordsAtMask ??= document.querySelector("
            "'.explanation')?.textContent.length ?? 0)).observe(document.getElementById('marks'),"
            "{childList: true})"
        )
        ask(page, "Which large organ here makes bile?")
        page.until_shown(".round-footer")
        words = page.text(".explanation")
        assert "liver" in words.lower()
        assert page.js("window.wordsAtMask") < len(words), "the mask came before the words"

        page.js("document.querySelector('.finding').focus()")
        page.until_shown(".mark.in-focus")
        assert "mm" in page.text(".tag.in-focus")
        assert "%" in page.text(".finding-score")
        page.one("#similarity").click()
        page.until("!document.getElementById('heat').hidden")
        page.one("#compare").click()
        before = int(page.js("document.getElementById('divider').ariaValueNow"))
        page.one("#divider").send_keys("\ue014")  # right
        assert int(page.js("document.getElementById('divider').ariaValueNow")) == before + 4

        ask(page, "Where are both kidneys?")
        page.until_shown(".round-footer", 2)
        assert "kidney" in page.all(".explanation")[1].text.lower()
        page.all(".question")[0].click()
        assert "liver" in page.text(".tag").lower(), "the earlier round is shown again"

        links = [link for link in page.all(".round-footer button.link") if link.is_displayed()]
        links[-1].click()
        end = time.monotonic() + PATIENCE
        while not (found := list(downloads.glob("*.json"))):
            assert time.monotonic() < end, "no file was downloaded"
            time.sleep(0.1)
        saved = json.loads(found[0].read_text(encoding="utf-8"))
        assert saved["question"] == "Where are both kidneys?"
        assert page.problems() == []
        assert page.places() == {f"{place[0]}:{place[1]}"}, "nothing came from elsewhere"


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_nothing_is_cut_off_at_any_width_and_the_disclaimer_is_in_sight(page, picture, width):
    with live(create_app(FakeModel())) as place:
        page.open(address(place), width, 844)
        page.until_shown(".example", 5)
        in_sight = "(box => box.top >= 0 && box.bottom <= innerHeight && box.height > 10)"
        for state in ("welcome", "open"):
            if state == "open":
                give(page, picture)
                page.until("document.body.dataset.state === 'open'")
                ask(page, "Where is the liver?")
                page.until_shown(".round-footer")
            assert page.js("document.documentElement.scrollWidth") <= width
            box = "document.querySelector('.disclaimer').getBoundingClientRect()"
            assert page.js(f"{in_sight}({box})")
            unnamed = [
                node.get_attribute("outerHTML")
                for node in page.all("button, input, select, textarea, [role]")
                if node.is_displayed() and not node.accessible_name
                and node.aria_role not in ("status", "generic", "none", "alert")
            ]  # fmt: skip
            assert unnamed == []


def test_an_upload_that_is_no_image_is_said_and_leads_on(page, picture, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no image", encoding="utf-8")
    with live(create_app(FakeModel())) as place:
        page.open(address(place))
        give(page, str(text))
        page.until_shown("[role=alert]")
        said = page.text("[role=alert]")
        assert "notes.txt could not be opened" in said
        assert "It is not an image of a known format" in said
        give(page, picture)
        page.until("document.body.dataset.state === 'open'")
        assert page.all("[role=alert]") == []


def test_a_connection_lost_in_mid_stream_keeps_what_came_and_asks_again(page, picture):
    with live(create_app(SlowModel(seconds=0.5, pieces=40))) as place:
        cable = Cable(place)
        page.open(cable.address)
        give(page, picture)
        page.until("document.body.dataset.state === 'open'")
        ask(page, "Where is the liver?")
        page.until("document.querySelector('.explanation')?.textContent.includes('word1')")
        cable.cut()
        page.until_shown(".trouble.lost")
        assert "connection was lost" in page.text(".trouble")
        assert "word1" in page.text(".explanation")
        assert page.all(".mark"), "the mask that came is still shown"
        cable.mend()
        page.one(".trouble .button").click()
        page.until("document.querySelector('.explanation')?.textContent.includes('word1')")
        assert page.all(".trouble") == []
        page.one("#send").click()
        page.until_shown(".trouble.stopped")
        cable.close()


def test_a_server_that_is_full_counts_down_and_then_answers(page, picture, monkeypatch):
    app = create_app(FakeModel())
    service = app.state.service
    with live(app) as place:
        page.open(address(place))
        give(page, picture)
        page.until("document.body.dataset.state === 'open'")
        ask_once = service.ask

        def full(*_: Any, **__: Any) -> Any:
            raise ServeError(503, "full", "too many questions wait", {"Retry-After": "2"})

        monkeypatch.setattr(service, "ask", full)
        ask(page, "Where is the liver?")
        page.until_shown(".trouble.busy")
        assert page.js("document.querySelector('.trouble .button').disabled")
        monkeypatch.setattr(service, "ask", ask_once)
        page.until("!document.querySelector('.trouble .button').disabled")
        page.one(".trouble .button").click()
        page.until_shown(".round-footer")


def test_a_forgotten_image_is_opened_again(page, picture):
    app = create_app(FakeModel())
    with live(app) as place:
        page.open(address(place))
        give(page, picture)
        page.until("document.body.dataset.state === 'open'")
        app.state.service.store.clear()
        ask(page, "Where is the liver?")
        page.until_shown(".trouble.expired")
        page.one(".trouble .button").click()
        page.until_shown(".round-footer")


def test_a_refusal_looks_like_one_and_says_why(page, picture):
    with live(create_app(FakeModel())) as place:
        page.open(address(place))
        give(page, picture)
        page.until("document.body.dataset.state === 'open'")
        ask(page, "How is the weather?")
        page.until_shown(".refusal")
        assert "Not a question about a medical image" in page.text(".refusal")
        assert page.all(".mark") == []
        assert page.js("document.getElementById('compare').disabled")
        ask(page, "Wo ist die Leber, größte Drüse?")
        page.until_shown(".warning")
        assert "not in English" in page.text(".warning")


def test_a_token_is_asked_for_once(page, picture):
    with live(create_app(FakeModel(), token="open sesame")) as place:
        page.open(address(place))
        page.until("document.getElementById('token-dialog').open")
        page.keys("open sesame", ENTER)
        page.until_shown(".example", 5)
        give(page, picture)
        page.until("document.body.dataset.state === 'open'")
        ask(page, "Where is the liver?")
        page.until_shown(".round-footer")
        page.js("sessionStorage.clear()")


def test_slices_and_windows_of_a_volume(page, tmp_path):
    import nibabel

    path = tmp_path / "volume.nii.gz"
    voxels = np.random.default_rng(0).integers(-1000, 900, (20, 24, 8), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 4.0, 1.0])), path)
    with live(create_app(FakeModel())) as place:
        page.open(address(place))
        give(page, str(path))
        page.until("document.body.dataset.state === 'open'")
        assert page.text("#slice-number") == "5 of 8"
        before = page.js("document.getElementById('image').toDataURL()")
        ask(page, "Where is the liver?")
        page.until_shown(".round-footer")
        page.one("#slice").send_keys("\ue014")
        page.until(f"document.getElementById('image').toDataURL() !== {json.dumps(before)}")
        assert page.text("#slice-number") == "6 of 8"
        page.all(".question")[0].click()
        assert page.js("document.getElementById('image').toDataURL()") == before
        page.one("#window").send_keys("lung")
        page.until("document.getElementById('window').value === 'lung'")
        assert page.problems() == []


def test_medical_formats_are_offered_or_it_is_said_why_not(page, picture, downloads):
    with live(create_app(FakeModel())) as place:
        page.open(address(place), 390, 844)
        give(page, picture)
        page.until("document.body.dataset.state === 'open'")
        ask(page, "Where is the liver?")
        page.until_shown(".medical")
        page.one(".medical summary").click()
        assert "not a DICOM file" in page.text(".medical")
        assert page.all(".medical button") == []

        give(page, str(example_path("abdomen-mr")))
        page.until("document.querySelector('#what').textContent.includes('MR')")
        ask(page, "Where is the liver?")
        page.until_shown(".medical")
        page.one(".medical summary").click()
        page.js("document.querySelector('.medical').scrollIntoView()")
        for button in page.all(".medical button"):
            button.click()
        wanted = ("*.mask-1.nii.gz", "*.seg.dcm", "*.report.zip")
        end = time.monotonic() + PATIENCE
        while not all(list(downloads.glob(name)) for name in wanted):
            assert time.monotonic() < end, list(downloads.iterdir())
            time.sleep(0.1)
        assert page.problems() == []


def test_keys_zoom_and_move_the_image(page, picture):
    with live(create_app(FakeModel())) as place:
        page.open(address(place))
        give(page, picture)
        page.until("document.body.dataset.state === 'open'")
        page.one("#stage").send_keys("+++")
        assert page.text("#zoom").startswith("195")
        place_before = page.js("document.querySelector('.plane').style.translate")
        page.one("#stage").send_keys("\ue012")
        assert page.js("document.querySelector('.plane').style.translate") != place_before
        page.one("#stage").send_keys("0")
        assert page.text("#zoom").startswith("100")


def test_masks_are_decoded_as_pycocotools_does(page):
    rng = np.random.default_rng(0)
    masks = [rng.random((rng.integers(1, 60), rng.integers(1, 60))) < p for p in (0, 0.1, 0.5, 1)]
    masks.append(np.pad(np.ones((900, 900), bool), 200))
    script = (
        "const done = arguments[1]; import('/page/masks.js').then(({decodeMask, outline}) => done("
        "arguments[0].map((rle) => { const mask = decodeMask(rle); return {step: mask.step, "
        "pixels: [...mask.pixels].join(''), outline: outline(mask)}; })))"
    )
    with live(create_app(FakeModel())) as place:
        page.open(address(place))
        given = [encode_rle(mask) for mask in masks]
        decoded = page.chrome.execute_async_script(script, given)
    for mask, result in zip(masks, decoded, strict=True):
        assert result["step"] == 1
        assert result["pixels"] == "".join(map(str, mask.astype(int).ravel()))
        assert bool(result["outline"]) == bool(mask.any())
