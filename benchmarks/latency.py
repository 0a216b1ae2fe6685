"""Latency of MediSee's three phases, side by side with the authors' arrangement.

    python benchmarks/latency.py [--model nano] [--rounds 3] [--threads 2]

The authors' arrangement, on the same weights in the same run: every question encodes the image
again and decodes its answer token by token, the mask coming last.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import medisee
from medisee.predictor import Model, Session

QUESTION = "Which large organ here makes bile and breaks down poisons?"
IMAGE = "example:abdomen-mr"


def timed(run: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call, after one that does not count."""
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def fresh(model: Model, questions: list[str], explain: bool) -> Session:
    """A new session, its image encoded, and all questions asked."""
    session = model.open(IMAGE)
    session.ask(questions, explain=explain)
    return session


@torch.inference_mode()
def authors_way(model: Model, question: str) -> None:
    """Encode, decode the whole answer token by token, then locate: once per question."""
    session = model.open(IMAGE)
    network, processor = model.runtime.model, model.processor
    image, text = session._encoded, network.text
    past = image.prefix.keys_values
    pending = processor.question_ids(question)
    answer = processor.group + list(_words(session, question))
    states = []
    for token in [*answer, processor.end_id]:
        ids = torch.tensor([pending])
        mask = ids.new_ones(1, past[0][0].shape[2])
        found, past = text.continue_from(past, mask, ids, torch.ones_like(ids))
        text.logits(found[:, -1]).argmax()
        if token in network.config.candidate_token_ids:
            states.append(found[:, -1])
        pending = [token]
    candidates = torch.stack(
        states[::-1], dim=1
    )  # [SEG] is spoken first, the router's first is [BBOX]
    network.locate(candidates, image.embedding, image.prefix.image_states, image.content)


def _words(session: Session, question: str) -> list[int]:
    """As many words as our own answer has, so that both decode the same number."""
    if question not in _LENGTHS:
        _LENGTHS[question] = session.model.processor.encode_text(" " + session.ask(question).text)
    return _LENGTHS[question]


_LENGTHS: dict[str, list[int]] = {}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, rounds = medisee.load(arguments.model), arguments.rounds

    session = model.open(IMAGE)
    first = timed(lambda: fresh(model, [QUESTION], explain=False), rounds)
    following = timed(lambda: _ask_alone(session, [QUESTION], explain=False), rounds)
    explained = timed(lambda: _ask_alone(session, [QUESTION], explain=True), rounds)
    twenty = timed(lambda: _ask_alone(session, [QUESTION] * 20, explain=False), rounds)
    theirs = timed(lambda: authors_way(model, QUESTION), rounds)

    rows = [
        ("fresh image to mask", first, theirs),
        ("next question, mask", following, theirs),
        ("next question, mask and explanation", explained, theirs),
        ("20 questions in one call, masks", twenty, 20 * theirs),
    ]
    print(f"{'':38}{'MediSee':>10}{'authors':>10}{'ratio':>8}")
    for name, ours, other in rows:
        print(f"{name:38}{ours:9.2f}s{other:9.2f}s{other / ours:7.1f}x")
    print(f"fresh image / next question: {first / following:.1f}x")


def _ask_alone(session: Session, questions: list[str], explain: bool) -> None:
    """Asks without what was asked before."""
    session.rounds.clear()
    session.ask(questions, explain=explain)


if __name__ == "__main__":
    main()
