"""A chat-completions endpoint for tests: loopback only, deterministic, and faulty on request.

Run as a process of its own; prints its port. The first part of the path, such as `busy-1`, names
what is counted together, and up to the dash how it behaves. `GET /busy-1` gives the counts.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORDS = [
    "amber", "basket", "candle", "dapper", "ember", "fabric", "garden", "hollow", "island",
    "jacket", "kettle", "ladder", "meadow", "napkin", "orchard", "pebble", "quiver", "ribbon",
    "saddle", "tunnel", "umber", "velvet", "willow", "yonder", "zephyr", "anchor", "barrel",
    "copper", "drizzle", "easel",
]  # fmt: skip
COUNTS: dict[str, Counter] = defaultdict(Counter)
SEEN: dict[str, Counter] = defaultdict(Counter)
REPLIES: dict[str, dict[str, bytes]] = defaultdict(dict)
LAST: dict[str, dict] = {}
LOCK = threading.Lock()


def dice_of(text: str) -> random.Random:
    return random.Random(hashlib.sha256(text.encode()).hexdigest())


def phrase(dice: random.Random, length: str, clue: str | None) -> str:
    start = ["the", "thing", *([clue] if clue else ["with"])]
    words = " ".join(start).split()
    missing = (8 if length == "short" else 13) - len(words)
    return " ".join(words + dice.sample(WORDS, max(2, missing)))


def describe(text: str) -> dict:
    dice = dice_of(text)
    clues = re.findall(r"(?m)^- (.+)$", text.split("are true")[1].split("\n- *short*")[0])
    told = []
    for count, perspective, length in re.findall(r"- (\d+) x (\w+), (\w+)", text):
        for _ in range(int(count)):
            clue = None
            if perspective == "location":
                clue = dice.choice(sorted(clues, key=lambda text: len(text.split()))[:2])
            text = phrase(dice, length, clue)
            told.append({"perspective": perspective, "length": length, "text": text})
    return {"descriptions": told}


def transform(text: str) -> dict:
    label = re.search(r"always: \*\*(.+?)\*\*", text)[1]
    answer = f"That is the {label}, since all that is said about it here fits it well."
    found = []
    for number, told, count in re.findall(r"(\d+)\. \(.+?\) (.+)\n   questions: (\d)", text):
        for wording in (f"Where is {told}?", f"Mark {told}.")[: int(count)]:
            found.append({"number": int(number), "question": wording, "answer": answer})
    return {"questions": found}


def review(text: str) -> dict:
    items = re.findall(r"(?m)^(\d+)\. \(.+?\) (.+)$", text)
    verdicts = [
        {
            "number": int(n),
            "verdict": "drop" if n == "2" else "keep",
            "text": told,
            "reason": "vague",
        }
        for n, told in items
    ]
    return {"verdicts": verdicts}


def reply_to(text: str) -> dict:
    if "Judge every number" in text:
        return review(text)
    if "The right answer is always" in text:
        return transform(text)
    if "Describe the image" in text:
        return {"caption": "Some bright shapes on grey. A broken tibia lies here."}
    return describe(text)


def text_of(body: dict) -> str:
    content = body["messages"][1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        name = self.path.strip("/")
        self.send(200, json.dumps({**COUNTS[name], "last": LAST.get(name)}).encode())

    def do_POST(self):
        self.name = self.path.strip("/").split("/")[0]
        self.mode = self.name.split("-")[0]
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key = self.headers.get("idempotency-key", "")
        with LOCK:
            LAST[self.name] = {"path": self.path, "headers": dict(self.headers), "body": body}
            COUNTS[self.name]["asked"] += 1
            SEEN[self.name][key] += 1
            time_seen = SEEN[self.name][key]
        if self.mode == "slow":
            time.sleep(0.01)
        if not self.trouble(key, time_seen, body):
            self.pay(key, body)

    def trouble(self, key: str, time_seen: int, body: dict) -> bool:
        """Answers with what is no completion, as the mode wants; False where nothing is wrong."""
        form = body.get("response_format", {}).get("type")
        if self.mode == "plain" and form:
            return self.send(400, b'{"error": {"message": "response_format is not supported"}}')
        if self.mode == "new" and "max_tokens" in body:
            return self.send(400, b"'max_tokens' is not supported, use 'max_completion_tokens'")
        status = {"locked": 401, "lost": 404, "down": 503, "odd": 418}.get(self.mode)
        if status:
            return self.send(status, b"key sk-secret-0123 was wrong")
        if self.mode != "faulty" or time_seen > 1:
            return False
        fault = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 7
        if fault == 0:
            return self.send(429, b"slow down", {"retry-after": "0.01"})
        if fault == 1:
            return self.send(500, b"oops")
        if fault == 2:
            return self.cut_off(b'{"choices": [{"mess')
        if fault == 3:
            return self.cut_off(None)
        if fault == 4:
            return self.send(200, b"<html>welcome to the login page")
        return False

    def pay(self, key: str, body: dict) -> None:
        with LOCK:
            known = REPLIES[self.name].get(key)
            COUNTS[self.name]["repeated" if known else "paid"] += 1
            if known is None:
                known = REPLIES[self.name][key] = self.completion(body)
        self.send(200, known)

    def completion(self, body: dict) -> bytes:
        text = text_of(body)
        message, reason = {"content": json.dumps(reply_to(text))}, "stop"
        bad = {"refusing": 0, "nonsense": 1, "silent": 2, "short": 3, "naming": 4}.get(self.mode)
        if self.mode == "faulty":
            bad = dice_of("bad" + text).choice((0, 1, 2, 3, 4, *(None,) * 15))
        if bad == 0:
            message = {"content": None, "refusal": "I cannot help with that."}
        elif bad == 1:
            message = {"content": '{"answer": 42}' if len(text) % 2 else "As a model, I think"}
        elif bad == 2:
            message = {"content": ""}
        elif bad == 3:
            message, reason = {"content": message["content"][:40]}, "length"
        elif bad == 4:
            message = {"content": message["content"].replace("thing", "liver kidney")}
        usage = {"prompt_tokens": len(text) // 4, "completion_tokens": 100}
        choice = {"message": message, "finish_reason": reason}
        return json.dumps({"choices": [choice], "usage": usage}).encode()

    def cut_off(self, start: bytes | None) -> bool:
        if start is not None:
            self.send_response(200)
            self.send_header("content-length", "5000")
            self.end_headers()
            self.wfile.write(start)
        self.close_connection = True
        self.wfile.flush()
        return True

    def send(self, status: int, content: bytes, headers: dict | None = None) -> bool:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return True


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()
