"""README and docs: the code runs, the links lead somewhere, the file map is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medisee.cli import COMMANDS
from medisee.errors import ModelError
from medisee.hub import find_model

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCE = ROOT / "src" / "medisee"


def python_blocks(page: Path) -> str:
    """All Python blocks of a page, in order: later ones go on where earlier ones stopped."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S))


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def nano():
    """Skips where the shipped model cannot run."""
    try:
        find_model("nano")
    except ModelError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=page_name)
def test_python_of_the_docs_runs(page, nano, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(python_blocks(page), page_name(page), "exec"), {})
    assert capsys.readouterr().out


def test_the_first_command_of_the_readme_runs(nano, run, tmp_path):
    text = (ROOT / "README.md").read_text("utf-8")
    image, question = re.search(r'medisee ask (\S+) "([^"]+)"', text).groups()
    done = run("ask", image, question)
    assert done.code == 0
    assert "target" in done.out
    assert list(tmp_path.glob("*.overlay.png"))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_of_the_docs_exist(page):
    named = re.findall(r"^(?:.*&& )?medisee ([a-z]+)", page.read_text("utf-8"), re.M)
    assert set(named) <= {command.split()[0] for command in COMMANDS}


def test_the_file_map_names_every_room_and_only_rooms_that_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"## File map\n\n```\n(.*?)```", text, re.S).group(1)
    top = set(re.findall(r"^(\S+?)/? ", block, re.M)) - {""}
    rooms = set(re.findall(r"^  (\S+?)/? ", block, re.M))
    missing = sorted(name for name in top if not (ROOT / name).exists())
    assert missing == []
    assert rooms == {path.name for path in SOURCE.iterdir()} - HIDDEN


HIDDEN = {"__main__.py", "__pycache__", "py.typed"}
