"""Chat completions, with OpenAI's own client."""

from __future__ import annotations

import base64

import pytest
from fastapi.testclient import TestClient
from serve.serving import SlowModel, png

from medisee.serve.app import create_app

openai = pytest.importorskip("openai")


def conversation(*texts, picture=True):
    """Messages of user and assistant in turn; the first one with a picture."""
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    messages = [
        {"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)
    ]
    if picture:
        parts = [
            {"type": "text", "text": texts[0]},
            {"type": "image_url", "image_url": {"url": url}},
        ]
        messages[0]["content"] = parts
    return messages


@pytest.fixture
def chat():
    model = SlowModel()
    with TestClient(create_app(model, token="key")) as http:
        yield openai.OpenAI(
            api_key="key", base_url="http://testserver/v1", http_client=http, max_retries=0
        )


def test_models(chat):
    assert [model.id for model in chat.models.list()] == ["fake"]
    assert chat.models.retrieve("fake").id == "fake"


def test_a_completion_has_words_and_findings(chat):
    done = chat.chat.completions.create(model="fake", messages=conversation("Where is it?"))
    assert done.choices[0].message.content == "word0 word1 word2 word3 word4"
    assert done.choices[0].finish_reason == "stop"
    assert done.medisee["findings"][0]["box"]
    assert done.system_fingerprint.startswith("sha256:")


def test_a_stream_has_findings_first(chat):
    messages = conversation("Where is it?")
    chunks = list(chat.chat.completions.create(model="fake", messages=messages, stream=True))
    assert chunks[0].medisee["findings"]
    assert chunks[0].choices[0].delta.role == "assistant"
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert words.split() == [f"word{n}" for n in range(5)]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].medisee["text"] == "word0 word1 word2 word3 word4"


def test_earlier_messages_are_the_rounds(chat, monkeypatch):
    seen = []
    plain = SlowModel.open

    def spy(self, image):
        session = plain(self, image)
        begin = session.begin
        session.begin = lambda q, h=None: (
            seen.append((list(q), [list(x) for x in h])),
            begin(q, h),
        )[1]
        return session

    monkeypatch.setattr(SlowModel, "open", spy)
    messages = [{"role": "system", "content": "Be brief."}, *conversation("One?", "It is.", "Two?")]
    chat.chat.completions.create(model="fake", messages=messages, temperature=0.3)
    assert seen == [(["Two?"], [[("One?", "It is.")]])]


def refused(chat, **given):
    with pytest.raises(openai.APIStatusError) as error:
        chat.chat.completions.create(**{"model": "fake", **given})
    return error.value.status_code, error.value.code


def test_what_cannot_be_used_is_refused(chat):
    plain = conversation("Where is it?", picture=False)
    assert refused(chat, messages=plain) == (400, "invalid_request")
    assert refused(chat, messages=conversation("One?", "It is.")) == (400, "invalid_request")
    assert refused(chat, messages=conversation("a" * 2001)) == (400, "invalid_input")
    assert refused(chat, messages=conversation("One?"), n=2) == (400, "invalid_request")
    assert refused(chat, model="other", messages=plain) == (404, "model_not_found")


@pytest.mark.parametrize("url", ["http://example.org/a.png", "file:///etc/passwd", "data:,x", ""])
def test_no_address_is_ever_fetched(chat, url):
    parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": parts}]
    assert refused(chat, messages=messages) == (400, "invalid_request")


def test_a_wrong_key_is_refused(chat):
    with pytest.raises(openai.AuthenticationError):
        chat.with_options(api_key="other").models.list()
