"""How many questions a second the server answers, and how long each takes, at rising load.

    python benchmarks/serving.py                      # nano, 1 to 8 clients, ~5 minutes
    python benchmarks/serving.py --flat 2000          # memory over 2,000 requests

Each client sends its next question when the last is answered. `one-shot` sends the image along
every time (the same one, as from one page); `session` sends it once for all. `alone` is the same
server with batches off: one image, one question at a time. The server is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

QUESTIONS = [
    "Which large organ here makes bile and breaks down poisons?",
    "Where is the spleen?",
    "Which bean-shaped organ on the patient's right makes urine?",
    "Where is the aorta?",
    "Show the liver.",
    "Where is the stomach?",
    "Which organ filters old blood cells out of the blood?",
    "Where is the left kidney?",
]

SERVER = """
import sys
from medisee.serve.app import create_app
from medisee.serve.limits import Limits
from medisee.serve.server import listen, run
if sys.argv[2] == "fake":
    from medisee.testing import FakeModel
    model = FakeModel()
else:
    from medisee.predictor import load
    model = load(sys.argv[2])
limits = Limits(batch=int(sys.argv[3]), request_seconds=600)
run(create_app(model, limits), listen("127.0.0.1", int(sys.argv[1])))
"""


@contextmanager
def served(model: str, batch: int) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its address and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port), model, str(batch)])
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(f"{address}/health", timeout=5).raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait(30)


def load(
    ask: Callable[[httpx.Client, str], None], clients: int, seconds: float, server: int
) -> dict[str, float]:
    """Requests a second, latency percentiles and the server's CPU time a request, in seconds.

    The last tells something on a busy machine, too.
    """
    taken: list[float] = []
    before = _cpu_seconds(server)
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        with httpx.Client(timeout=600) as client:
            count = number
            while True:  # at least one, however slow
                started = time.monotonic()
                ask(client, QUESTIONS[count % len(QUESTIONS)])
                taken.append(time.monotonic() - started)
                count += 1
                if time.monotonic() >= end:
                    return

    started = time.monotonic()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed, ordered = time.monotonic() - started, sorted(taken)
    cpu = (_cpu_seconds(server) - before) / len(taken)
    marks = {
        f"p{q}": ordered[min(int(len(ordered) * q / 100), len(ordered) - 1)] for q in (50, 95, 99)
    }
    return {
        "requests_per_second": len(taken) / elapsed,
        **marks,
        "cpu_seconds": cpu,
        "n": len(taken),
    }


def asker(address: str, way: str) -> Callable[[httpx.Client, str], None]:
    """How a client asks: with the image each time, or in one session for all."""
    if way == "one-shot":
        url, body = f"{address}/v1/ask", {"example": "abdomen-mr"}
    else:
        opened = httpx.post(f"{address}/v1/sessions", json={"example": "abdomen-mr"}, timeout=600)
        url, body = f"{address}/v1/sessions/{opened.json()['id']}/ask", {}

    def ask(client: httpx.Client, question: str) -> None:
        client.post(url, json={**body, "question": question}).raise_for_status()

    return ask


def compare(model: str, clients: list[int], seconds: float) -> list[dict[str, Any]]:
    """One row for each way, mode and number of clients."""
    rows = []
    for mode, batch in (("alone", 1), ("batched", 16)):
        with served(model, batch) as (address, process):
            for way in ("one-shot", "session"):
                ask = asker(address, way)
                with httpx.Client(timeout=600) as client:
                    ask(client, QUESTIONS[0])  # warm
                for count in clients:
                    figures = load(ask, count, seconds, process)
                    rows.append({"way": way, "mode": mode, "clients": count, **figures})
                    print(json.dumps(rows[-1]), flush=True)
    return rows


def flat(model: str, requests: int) -> None:
    """Memory of the server (MB) every tenth of so many requests of both ways."""
    with served(model, 16) as (address, process):
        asks = [asker(address, way) for way in ("one-shot", "session")]
        with httpx.Client(timeout=600) as client:
            for number in range(requests + 1):
                if number % max(requests // 10, 1) == 0:
                    print(
                        json.dumps({"requests": number, "rss_mb": _resident(process)}), flush=True
                    )
                asks[number % 2](client, QUESTIONS[number % len(QUESTIONS)])


def _resident(process: int) -> float:
    pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
    return round(int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print one JSON line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nano", help="name or folder; fake for none")
    parser.add_argument("--clients", default="1,2,4,8", help="numbers of clients")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement")
    parser.add_argument("--flat", type=int, default=0, help="requests over which memory is told")
    given = parser.parse_args()
    if given.flat:
        flat(given.model, given.flat)
        return
    rows = compare(given.model, [int(n) for n in given.clients.split(",")], given.seconds)
    for way in ("one-shot", "session"):
        speeds = {r["mode"]: r["requests_per_second"] for r in rows if r["way"] == way}
        costs = {r["mode"]: r["cpu_seconds"] for r in rows if r["way"] == way}
        print(
            f"{way}, most clients: {speeds['batched'] / speeds['alone']:.2f} times as many, "
            f"{costs['alone'] / costs['batched']:.2f} times as little CPU time each"
        )


if __name__ == "__main__":
    main()
