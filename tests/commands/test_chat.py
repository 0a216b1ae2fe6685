"""`medisee chat`: many questions about one image."""

from __future__ import annotations

import io

import pytest

from medisee.testing import FakeSession


@pytest.fixture
def chat(run, fake, scan, monkeypatch):
    """`chat("line", ...)` types lines at the prompt of a chat about a small image."""

    def type_lines(*lines, options=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return run("chat", scan, *options)

    return type_lines


def test_answers_each_line_until_the_end(chat):
    done = chat("Where is the liver?", "", "And the absent one?")
    assert done.code == 0
    assert "? Where is the liver?" in done.out
    assert "The liver is in the middle." in done.out
    assert "Not in this image" in done.out


def test_quit_ends_it(chat):
    done = chat("/quit", "Where is the liver?")
    assert done.code == 0
    assert "liver" not in done.out


def test_save_writes_the_last_answer(chat, tmp_path):
    done = chat("Where is the liver?", "/save", "/save other", options=["--out", "results"])
    assert done.code == 0
    for folder in ("results", "other"):
        assert (tmp_path / folder / "scan.overlay.png").is_file()


def test_what_cannot_be_done_is_said_and_the_chat_goes_on(chat):
    done = chat("/save", "/nonsense", "why " * 600, "/help", "Where is it?")
    assert done.code == 0
    assert "no answer to save" in done.err
    assert "/nonsense" in done.err
    assert "2,000" in done.err
    assert "/save [FOLDER]" in done.out
    assert "The liver is in the middle." in done.out


def test_ctrl_c_stops_the_answer_and_not_the_chat(chat, monkeypatch):
    stream, calls = FakeSession.stream, []

    def stop_once(self, question):
        calls.append(question)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return stream(self, question)

    monkeypatch.setattr(FakeSession, "stream", stop_once)
    done = chat("First?", "Second?")
    assert done.code == 0
    assert "stopped" in done.err
    assert "The liver is in the middle." in done.out
