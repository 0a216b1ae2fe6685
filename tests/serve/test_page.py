"""The page's files: complete, self-contained, readable, and served with a strict policy."""

from __future__ import annotations

import re
from itertools import product

import pytest

pytest.importorskip("fastapi", reason="the serve extra is not installed")

from fastapi import FastAPI
from starlette.testclient import TestClient

from medisee.examples import list_examples
from medisee.serve import page

PAGES = ["index", "screening"]
ASSETS = sorted(path.name for path in page.FILES.iterdir())


def text_of(name: str) -> str:
    return (page.FILES / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    page.mount(app)
    return TestClient(app)


def test_the_front_is_the_page(client):
    front = client.get("/")
    assert front.status_code == 200
    assert front.headers["content-type"].startswith("text/html")
    assert "Research tool, not a medical device" in front.text


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in ASSETS)])
def test_every_file_comes_with_the_policy(client, path):
    headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers[
        "content-security-policy"].split(";"))  # fmt: skip
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    allowed = {word for words in policy.values() for word in words.split()}
    assert allowed <= {"'none'", "'self'", "blob:"}, "nothing from elsewhere, nothing inline"
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/page/nonsense.js", "/page/../__init__.py", "/page/",
                                  "/page/examples/nonsense.png"])  # fmt: skip
def test_nothing_else_is_served(client, path):
    assert client.get(path).status_code == 404


def test_modules_come_as_javascript(client):
    for name in ASSETS:
        if name.endswith(".js"):
            assert "javascript" in client.get(f"/page/{name}").headers["content-type"]


def test_each_example_has_a_small_picture(client):
    for example in list_examples():
        picture = client.get(f"/page/examples/{example.name}.png")
        assert picture.headers["content-type"] == "image/png"
        assert picture.content.startswith(b"\x89PNG")
        assert len(picture.content) < 60_000


@pytest.mark.parametrize("name", ASSETS)
def test_no_file_names_another_place(name):
    found = set(re.findall(r"https?://[^\s\"')]+", text_of(name)))
    assert found <= {"http://www.w3.org/2000/svg"}, "a name of a namespace, never fetched"


@pytest.mark.parametrize("name", PAGES)
def test_pages_hold_nothing_inline_and_name_only_files_that_are_there(name):
    text = page.document(name)
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    named = re.findall(r'(?:href|src)="page/([^"]+)"', text)
    assert named
    assert set(named) <= set(ASSETS)


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_whole_and_named(name):
    text = page.document(name)
    for tag in ("html", "head", "title", "body", "main"):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>") == 1
    assert "Research tool, not a medical device" in text
    assert not re.search(r"https?://", text)


@pytest.mark.parametrize("name", PAGES)
def test_ids_are_unique_and_every_label_icon_and_description_leads_somewhere(name):
    text = page.document(name)
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    pointers = re.findall(r'(?:for|aria-labelledby|aria-describedby)="([^"]+)"', text)
    pointers += re.findall(r'href="#([^"]+)"', text)
    assert set(pointers) <= set(ids)


@pytest.mark.parametrize("name", [name for name in ASSETS if name.endswith(".js")])
def test_modules_import_only_what_is_there(name):
    for names, module in re.findall(r'import \{([^}]+)\} from "\./([^"]+)"', text_of(name)):
        exported = set(re.findall(r"export (?:const|(?:async )?function\*?|class) (\w+)",
                                  text_of(module)))  # fmt: skip
        assert {each.strip() for each in names.split(",")} <= exported


def colours(dark: bool) -> dict[str, tuple[int, ...]]:
    """The hex colours of base.css by name."""
    light, _, rest = text_of("base.css").partition("@media (prefers-color-scheme: dark)")
    text = light + (rest.partition("\n}\n")[0] if dark else "")
    found = re.findall(r"--([\w-]+): #([0-9a-f]{6});", text)
    return {name: tuple(bytes.fromhex(value)) for name, value in found}


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """WCAG 2's contrast ratio."""

    def luminance(colour: tuple[int, ...]) -> float:
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


TEXTS = [
    *product(["text", "muted"], ["ground", "surface", "raised"]),
    *product(["text"], ["accent-soft", "amber-soft", "red-soft"]),
    ("accent", "surface"), ("accent", "accent-soft"), ("accent-text", "accent"),
    ("amber", "amber-soft"), ("amber", "surface"), ("red", "surface"), ("red", "red-soft"),
]  # fmt: skip


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_are_told_apart_by_everybody(dark):
    palette = colours(dark)
    for text, ground in TEXTS:
        assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground)
    for edge in ("strong-line", "accent"):
        assert contrast(palette[edge], palette["surface"]) >= 3, edge
