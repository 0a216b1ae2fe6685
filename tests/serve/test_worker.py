"""Batches, queues, sessions: what is done together changes no answer and has its bounds."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastapi.testclient import TestClient
from serve.serving import SlowModel, png, until

from medisee.io import read_image
from medisee.serve.app import create_app
from medisee.serve.errors import ServeError
from medisee.serve.limits import Limits
from medisee.serve.sessions import Held, SessionStore
from medisee.testing import FakeModel


def open_session(client, seed=0):
    key = client.post("/v1/sessions", files={"image": png(seed=seed)}).json()["id"]
    return f"/v1/sessions/{key}"


def ask_all(client, paths, questions):
    """Every question at its path at the same time; the responses in order."""
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(
            pool.map(lambda p, q: client.post(f"{p}/ask", json={"question": q}), paths, questions)
        )


def test_questions_that_wait_together_are_answered_together(slow):
    client, model = slow
    path = open_session(client)
    model.gate.clear()
    questions = [f"Question {n}?" for n in range(6)]
    threading.Thread(
        target=lambda: (
            until(lambda: client.app.state.service.worker.waiting == 0),
            time.sleep(0.3),
            model.gate.set(),
        )
    ).start()
    done = ask_all(client, [path] * 6, questions)
    assert [each.json()["question"] for each in done] == questions
    assert sum(map(len, model.batches)) == 6
    assert max(map(len, model.batches)) > 1


def test_questions_about_other_images_do_not_mix(slow):
    client, model = slow
    paths = [open_session(client, seed) for seed in range(3)]
    done = ask_all(client, paths * 2, [f"Question {n}?" for n in range(6)])
    assert all(each.status_code == 200 for each in done)
    assert sum(map(len, model.batches)) == 6


def test_a_question_that_fails_takes_no_other_with_it():
    class Fragile(SlowModel):
        def open(self, image):
            session = super().open(image)
            begin = session.begin

            def fail(questions, histories=None):
                if any("broken" in question for question in questions):
                    raise RuntimeError("secret words")
                return begin(questions, histories)

            session.begin = fail
            return session

    with TestClient(create_app(Fragile())) as client:
        path = open_session(client)
        done = ask_all(client, [path] * 4, ["One?", "broken?", "Two?", "Three?"])
        assert [each.status_code for each in done] == [200, 500, 200, 200]
        assert "secret words" not in done[1].text
        listed = client.post(f"{path}/ask", json={"question": ["broken?"]},
                             headers={"Accept": "text/event-stream"})  # fmt: skip
        assert "event: error" in listed.text and "secret words" not in listed.text


def test_a_full_queue_answers_503_and_empties_again():
    model = SlowModel()
    with TestClient(create_app(model, Limits(queue=2, batch=1))) as client:
        path = open_session(client)
        model.gate.clear()
        waiting = client.app.state.service.worker
        with ThreadPoolExecutor(3) as pool:
            begun = [pool.submit(client.post, f"{path}/ask", json={"question": "Where?"})]
            until(lambda: waiting.waiting == 0)
            time.sleep(0.1)
            for number in (1, 2):
                begun.append(pool.submit(client.post, f"{path}/ask", json={"question": "Where?"}))
                until(lambda number=number: waiting.waiting == number)
            full = client.post(f"{path}/ask", json={"question": "Where?"})
            assert full.status_code == 503
            assert int(full.headers["retry-after"]) >= 1
            model.gate.set()
            assert [each.result().status_code for each in begun] == [200] * 3
        assert client.post(f"{path}/ask", json={"question": "Where?"}).status_code == 200


def test_what_takes_too_long_is_given_up():
    model = SlowModel(seconds=0.2, pieces=50)
    with TestClient(create_app(model, Limits(request_seconds=0.5))) as client:
        path = open_session(client)
        done = client.post(f"{path}/ask", json={"question": "Where?"})
        assert (done.status_code, done.json()["error"]["code"]) == (504, "too_long")
        said = model.said
        time.sleep(0.5)
        assert model.said <= said + 1


def test_the_same_image_sent_at_the_same_time_is_looked_at_once(slow):
    client, model = slow
    model.seconds = 0.05
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(
            lambda n: client.post("/v1/ask", files={"image": png()}, data={"question": f"Q {n}?"}),
            range(6),
        ))  # fmt: skip
    assert [each.json()["question"] for each in done] == [f"Q {n}?" for n in range(6)]
    assert model.opened < 6
    client.post("/v1/ask", files={"image": png(seed=1)}, data={"question": "Where?"})
    assert not client.app.state.service.sharing._coming


def test_nothing_of_a_one_shot_is_kept(slow):
    client, model = slow
    for _ in range(2):
        client.post("/v1/ask", files={"image": png()}, data={"question": "Where?"})
        gc.collect()  # SlowModel's sessions hold themselves
    assert model.opened == 2


def test_without_batches_every_image_is_looked_at_alone():
    model = SlowModel()
    with TestClient(create_app(model, Limits(batch=1))) as client:
        open_session(client), open_session(client)
        assert model.opened == 2


# ---- sessions --------------------------------------------------------------------------------


def held(limits, side=100):
    image = read_image(np.zeros((side, side), np.uint8))
    return Held(FakeModel().open(image), limits)


def test_the_longest_unused_session_makes_room():
    limits = Limits(sessions=2)
    store = SessionStore(limits)
    first, second, third = (held(limits) for _ in range(3))
    store.add(first), store.add(second)
    store.get(first.id)
    store.add(third)
    assert store.get(first.id) is first
    with pytest.raises(ServeError, match="no such session"):
        store.get(second.id)


def test_memory_is_bounded():
    limits = Limits(session_bytes=100_000)
    store = SessionStore(limits)
    for _ in range(5):
        store.add(held(limits))  # 40 kB each
    assert len(store) == 2
    assert store.bytes <= 100_000
    with pytest.raises(ServeError, match="more memory"):
        store.add(held(limits, side=200))


def test_sessions_expire():
    now = [0.0]
    store = SessionStore(Limits(session_seconds=10), clock=lambda: now[0])
    one = held(Limits())
    store.add(one)
    now[0] = 9
    store.get(one.id)
    now[0] = 18
    assert store.get(one.id) is one
    now[0] = 29
    with pytest.raises(ServeError, match="expired"):
        store.get(one.id)
    assert len(store) == 0


def test_only_the_last_rounds_are_kept():
    one = held(Limits(rounds=2))
    before = one.bytes
    for number in range(1, 6):
        one.keep(one.count(), one.session.ask(f"Question {number}?"))
    assert one.answer(None).question == "Question 5?"
    assert one.answer(4).findings[0].mask.shape == (100, 100)
    assert one.bytes < before + 10_000
    with pytest.raises(ServeError, match="no finished round"):
        one.answer(3)
    assert len(one.history) <= 4
