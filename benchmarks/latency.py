"""Latency of MediSee's three phases, side by side with the authors' arrangement.

    python benchmarks/latency.py [--model nano] [--rounds 5]

The authors' arrangement, on the same weights and machine: every question encodes the image again
and decodes its answer token by token, the mask coming last. On ONNX Runtime, as MediSee runs, and
on torch, as the authors do.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import medisee
from medisee.model.inference import TorchRuntime
from medisee.predictor import Model, Session
from medisee.runtime import OnnxRuntime

QUESTION = "Which large organ here makes bile and breaks down poisons?"
IMAGE = "example:abdomen-mr"


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls."""

    seconds: list[float]

    @property
    def p50(self) -> float:
        return float(np.percentile(self.seconds, 50))

    @property
    def p95(self) -> float:
        return float(np.percentile(self.seconds, 95))


def timed(run: Callable[[], object], rounds: int) -> Timing:
    """Calls `run` once without counting, then `rounds` times."""
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return Timing(seconds)


def ask_alone(session: Session, questions: list[str], explain: bool) -> None:
    """Asks without what was asked before."""
    session.rounds.clear()
    session.ask(questions, explain=explain)


def authors_way(model: Model, question: str, words: list[int]) -> None:
    """Encode, decode the whole answer token by token, then locate: once per question."""
    runtime, processor = model.runtime, model.processor
    assert isinstance(runtime, OnnxRuntime), "the comparison runs on ONNX Runtime"
    image = model.open(IMAGE)._encoded
    past, pending = image.past, processor.question_ids(question)
    states = []
    for token in [*processor.group, *words, processor.end_id]:
        ids = np.array([pending])
        seen = np.ones((1, past.shape[4] + len(pending)), bool)
        embedded = runtime._embeddings(ids)
        found, past, _ = runtime._run(embedded, past, seen, np.array([len(pending) - 1]))
        if token in runtime._candidates:
            states.append(found[0, -1])
        pending = [token]
    runtime._locate_groups(image, [[np.stack(states)]])


@torch.inference_mode()
def authors_way_in_torch(model: Model, question: str, words: list[int]) -> None:
    """The same on torch, eagerly."""
    runtime, processor = model.runtime, model.processor
    assert isinstance(runtime, TorchRuntime)
    network = runtime.model
    image = model.open(IMAGE)._encoded
    past, pending = image.prefix.keys_values, processor.question_ids(question)
    states = []
    for token in [*processor.group, *words, processor.end_id]:
        ids = torch.tensor([pending])
        seen = ids.new_ones(1, past[0][0].shape[2])
        found, past = network.text.continue_from(past, seen, ids, torch.ones_like(ids))
        network.text.logits(found[0, -1])
        if token in network.config.candidate_token_ids:
            states.append(found[0, -1])
        pending = [token]
    candidates = torch.stack(states)[None]
    network.locate(candidates, image.embedding, image.prefix.image_states, image.content)


def cold_start(model: str) -> float:
    """Seconds of a whole `medisee ask`, from the start of the process to files on disk."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "medisee", "ask", IMAGE, QUESTION, "--out", out]
        started = time.perf_counter()
        subprocess.run([*command, "--model", model], check=True, capture_output=True)
        return time.perf_counter() - started


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model, rounds = medisee.load(arguments.model, runtime="onnx"), arguments.rounds
    session = model.open(IMAGE)
    text = session.ask(QUESTION).text
    words = model.processor.encode_text(f" {text}")

    fresh = timed(lambda: model.open(IMAGE).ask(QUESTION, explain=False), rounds)
    following = timed(lambda: ask_alone(session, [QUESTION], explain=False), rounds)
    explained = timed(lambda: ask_alone(session, [QUESTION], explain=True), rounds)
    twenty = timed(lambda: ask_alone(session, [QUESTION] * 20, explain=False), rounds)
    theirs = timed(lambda: authors_way(model, QUESTION, words), rounds)
    reference = medisee.load(arguments.model, runtime="torch")
    in_torch = timed(lambda: authors_way_in_torch(reference, QUESTION, words), rounds)
    cold = timed(lambda: cold_start(arguments.model), rounds)

    for name, timing in [
        ("fresh image to mask", fresh),
        ("next question, mask", following),
        ("next question, mask and explanation", explained),
        ("20 questions in one call, masks", twenty),
        ("authors' arrangement, one question", theirs),
        ("the same on torch", in_torch),
        ("medisee ask, from start to files", cold),
    ]:
        print(f"{name:38} p50 {timing.p50:6.3f} s   p95 {timing.p95:6.3f} s")
    token = (explained.p50 - following.p50) / len(words)
    ten = fresh.p50 + 9 * following.p50 + 10 * len(words) * token
    print(f"explanation, per token: {1000 * token:.1f} ms")
    print(f"fresh image / next question: {fresh.p50 / following.p50:.1f}x")
    whole = fresh.p50 - following.p50 + twenty.p50
    print(f"20 calls with an image each / one call with 20: {20 * fresh.p50 / whole:.1f}x")
    print(f"20 calls in a session / one call with 20: {20 * following.p50 / twenty.p50:.1f}x")
    print(f"10 explained questions, authors' arrangement / MediSee: {10 * theirs.p50 / ten:.1f}x")
    print(f"the same on torch / MediSee: {10 * in_torch.p50 / ten:.1f}x")


if __name__ == "__main__":
    main()
