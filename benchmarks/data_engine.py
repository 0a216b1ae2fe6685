"""Speed and memory of `medisee data build` on drawn data sets of growing size.

    python benchmarks/data_engine.py [--entries 10000 100000] [--million] [--workers 1]

An entry is a written record. Each size runs in a process of its own; memory is the peak of the
largest of its processes. What to look for: records a second that stay, memory that stays. On a busy
machine the seconds of processor time say more than those of the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

LABELS = ("liver", "spleen", "aorta", "stomach")
RECORDS_AN_IMAGE = 84  # measured: 4 labels x 16 implicit ones, and the other kinds
DRAWN = 64  # different pictures; the images beyond are links to them


def draw(root: Path, images: int) -> None:
    """A data set of so many abdominal images with four labels each."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    with (root / "index.jsonl").open("w", encoding="utf-8") as index:
        for number in range(images):
            index.write(json.dumps(draw_image(root, number)) + "\n")


def draw_image(root: Path, number: int) -> dict[str, object]:
    """The index line of one image, whose files are drawn or linked."""
    name, dice = f"ct_00--drawn--{number:07d}", np.random.default_rng(number % DRAWN)
    masks, pixels = [], dice.integers(0, 255, (96, 96)).astype(np.uint8)
    save(root, f"images/{name}.png", pixels, number)
    for place, label in enumerate(LABELS):
        x1, y1 = (int(v) for v in dice.integers(0, 28, 2) + 48 * np.array([place % 2, place // 2]))
        mask = np.zeros((96, 96), np.uint8)
        mask[y1 : y1 + 16, x1 : x1 + 18] = 255
        file = f"masks/{name}--{place:04d}_000.png"
        save(root, file, mask, number)
        masks.append({"file": file, "label": label, "box": [x1, y1, x1 + 18, y1 + 16]})
    kind = {"modality": "CT", "body_part": "abdomen", "plane": "axial"}
    return {"image": f"images/{name}.png", "patient": name, "masks": masks, **kind}


def save(root: Path, file: str, pixels: np.ndarray, number: int) -> None:
    """Writes a picture, or links it to the one that was drawn alike."""
    first = f"{number % DRAWN:07d}"
    path = root / file
    if number < DRAWN:
        Image.fromarray(pixels).save(path)
    else:
        path.hardlink_to(root / file.replace(f"{number:07d}", first))


def measure(data: Path, out: Path, workers: int) -> None:
    """Builds in this process and prints the figures as JSON."""
    from medisee.engine.build import Settings, build

    started = time.perf_counter()
    built = build(data, out, Settings(), workers=workers)
    seconds = time.perf_counter() - started
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(
        json.dumps(
            {
                "records": sum(built.stats.records.values()) if built else 0,
                "seconds": seconds,
                "processor": sum(usage.ru_utime + usage.ru_stime for usage in used),
                "peak": max(usage.ru_maxrss for usage in used) / 1024,
            }
        )
    )


def main() -> None:
    """Draws, builds and prints a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--million", action="store_true", help="1,000,000 entries too")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(*chosen.measure, chosen.workers)
        return
    print("| entries | records | seconds | of processor | records/s of processor | peak MiB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for entries in [*chosen.entries, *([1_000_000] if chosen.million else [])]:
        with tempfile.TemporaryDirectory() as folder:
            data, out = Path(folder) / "data", Path(folder) / "set"
            draw(data, max(1, entries // RECORDS_AN_IMAGE))
            command = [sys.executable, __file__, "--workers", str(chosen.workers), "--measure"]
            done = subprocess.run([*command, data, out], capture_output=True, check=True)
        got = json.loads(done.stdout)
        rate = got["records"] / got["processor"]
        print(f"| {entries:,} | {got['records']:,} | {got['seconds']:.1f} | {got['processor']:.1f} "
              f"| {rate:,.0f} | {got['peak']:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
