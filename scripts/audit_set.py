"""Measure what a built set gets wrong, with code that shares nothing with the engine.

    python scripts/audit_set.py DIR DATA [--sample 20]

DIR is a set of `medisee data build`, DATA the data set that it was built from. Names and synonyms
are read from the knowledge files as plain text, masks and boxes from the PNG files; every claim
about place, size and side that a question makes is tested pixel by pixel. Nothing of the package
is imported. Exit code 1 when a rate is above what the project promises.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import re
import sys

import numpy as np
import yaml
from PIL import Image

ENTITIES = pathlib.Path(__file__).resolve().parent.parent / "src/medisee/entities"
MOST_LEAKS, MOST_FALSE = 0.001, 0.005
PICTURE = (
    r"(?:the|this|my)(?: [a-z-]+){0,2}? (?:image|picture|scan|slice|screen|ct|mri|x-ray|film"
    r"|radiograph|ultrasound|sonogram|photo|photograph|slide|micrograph|mammogram|frame|angiogram)"
)


def letters(text: str) -> str:
    """Lower case, British spelling made American, other signs made blanks."""
    text = text.lower().replace("oesoph", "esoph").replace("oedema", "edema")
    text = re.sub(r"tumour", "tumor", text.replace("haem", "hem").replace("grey", "gray"))
    return re.sub(r"[^a-z0-9]+", " ", text).strip()


def slips(word: str) -> set[str]:
    """All that one slip of the finger makes of a word."""
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    return {
        *(a + b[1:] for a, b in cuts if b),
        *(a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1),
        *(a + c + b[1:] for a, b in cuts if b for c in alphabet),
        *(a + c + b for a, b in cuts for c in alphabet),
    }


def spellings(term: str) -> list[str]:
    """A term without side and articles, in singular and plural, with and without its blanks."""
    plain = re.sub(r"\b(?:left|right|the|a|an)\b", " ", letters(term))
    plain = " ".join(plain.split())
    forms = {plain, plain + "s", plain + "es"}
    for end, other in (("us", "i"), ("is", "es"), ("a", "ae"), ("um", "a"), ("y", "ies"),
                       ("on", "a"), ("ex", "ices"), ("en", "ina")):  # fmt: skip
        if plain.endswith(end):
            forms.add(plain[: -len(end)] + other)
    return [form for form in forms if form]


class Names:
    """Finds out whether a question names its target."""

    def __init__(self) -> None:
        self.terms: dict[str, list[str]] = {}
        self.words: set[str] = set()
        for file in sorted(ENTITIES.glob("*.yaml")):
            text = file.read_text(encoding="utf-8")
            self.words.update(letters(text).split())
            for entry in yaml.safe_load(text) if file.name != "off_topic.yaml" else []:
                self.terms[entry["name"]] = [entry["name"], *entry["synonyms"]]
        self.forms = {
            name: sorted({form for term in terms for form in spellings(term)})
            for name, terms in self.terms.items()
        }
        self.misspelt = {
            name: {slip for form in forms if len(form) > 4 and " " not in form
                   for slip in slips(form)} - self.words
            for name, forms in self.forms.items()
        }  # fmt: skip

    def leak(self, question: str, label: str) -> str | None:
        """The form of the name that the question holds."""
        text = f" {letters(question)} "
        bare = " ".join(w for w in text.split() if w not in ("left", "right", "the", "a", "an"))
        for form in self.forms[label]:
            if f" {form} " in text or f" {form} " in f" {bare} ":
                return form
            if len(form) > 6 and self.joined(form.replace(" ", ""), bare.split()):
                return form
        return next((word for word in text.split() if word in self.misspelt[label]), None)

    @staticmethod
    def joined(form: str, words: list[str]) -> bool:
        """Whether words in a row, written together, are the form."""
        return any(
            "".join(words[i : i + n]) == form for n in (1, 2, 3) for i in range(len(words) - n + 1)
        )


class Pixels:
    """Masks of one image."""

    def __init__(self, data: pathlib.Path, entry: dict) -> None:
        self.plane, self.part = entry.get("plane") or "", entry.get("body_part") or ""
        self.masks: dict[str, np.ndarray] = {}
        for mask in entry["masks"]:
            pixels = np.asarray(Image.open(data / mask["file"]).convert("L")) > 0
            old = self.masks.get(mask["label"])
            self.masks[mask["label"]] = pixels if old is None else old | pixels

    def middle(self, label: str) -> tuple[float, float]:
        """Median pixel, as shares of width and height."""
        rows, columns = np.nonzero(self.masks[label])
        height, width = self.masks[label].shape
        return (np.median(columns) + 0.5) / width, (np.median(rows) + 0.5) / height

    def part_in(self, label: str, where: str) -> float:
        """Share of the mask's pixels in a half of the image."""
        mask = self.masks[label]
        height, width = mask.shape
        half = {
            "left": mask[:, : width // 2], "right": mask[:, (width + 1) // 2 :],
            "upper": mask[: height // 2], "lower": mask[(height + 1) // 2 :],
        }[where]  # fmt: skip
        return half.sum() / mask.sum()


SAME = {"top": "upper", "bottom": "lower"}


def claims(text: str, label: str, pixels: Pixels, names: Names):
    """(claim, whether it holds) for each place, size and side that the text tells."""
    others = {
        form: name
        for name in pixels.masks
        for form in {name.lower(), re.sub(r"\bof (?=left|right|heart)", "of the ", name.lower())}
    }
    other = f"(?:the )?({'|'.join(sorted(map(re.escape, others), key=len, reverse=True))})"
    x, y = pixels.middle(label)
    area = pixels.masks[label].sum()
    share = pixels.masks[label].mean()

    def of(name: str):
        return pixels.middle(others[name])

    def size(name: str):
        return pixels.masks[others[name]].sum()

    def find(pattern: str):
        return re.finditer(pattern, text)

    pattern = rf"(upper|lower|top|bottom) (left|right)(?: part| quarter| corner)? of {PICTURE}"
    for m in find(pattern):
        down = SAME.get(m[1], m[1])
        yield m[0], pixels.part_in(label, down) > 0.5 and pixels.part_in(label, m[2]) > 0.5
    for m in find(rf"the (upper|lower|left|right) (?:half|side|part) of {PICTURE}"):
        yield m[0], pixels.part_in(label, m[1]) > 0.5
    for m in find(rf"the (top|bottom) third of {PICTURE}"):
        yield m[0], (y < 0.36) if m[1] == "top" else (y > 0.64)
    for m in find(rf"(?:middle|centre|center) of {PICTURE}(?!(?: [a-z-]+)? than)"):
        yield m[0], abs(x - 0.5) < 0.2 and abs(y - 0.5) < 0.2
    for m in find(rf"(?:halfway down|mid-height in) {PICTURE}"):
        yield m[0], abs(y - 0.5) < 0.15
    for m in find(rf"(?:reaching|touching) the (left|right|top|bottom) edge of {PICTURE}"):
        mask = pixels.masks[label]
        height, width = mask.shape
        across, down = max(1, round(width * 0.02)), max(1, round(height * 0.02))
        strip = {
            "left": mask[:, :across], "right": mask[:, -across:],
            "top": mask[:down], "bottom": mask[-down:],
        }[m[1]]  # fmt: skip
        yield m[0], bool(strip.any())
    for m in find(rf"(more|less) than (half|a quarter|a tenth|a hundredth) of {PICTURE}"):
        limit = {"half": 1 / 2, "a quarter": 1 / 4, "a tenth": 1 / 10, "a hundredth": 1 / 100}[m[2]]
        yield m[0], bool(share > limit) == (m[1] == "more")
    for m in find(rf"(above|below) {other} in {PICTURE}"):
        yield m[0], (y < of(m[2])[1]) == (m[1] == "above")
    for m in find(rf"(higher|lower) in the picture than {other}"):
        yield m[0], (y < of(m[2])[1]) == (m[1] == "higher")
    for m in find(rf"(?<!right )(?<!left )(in front of|behind) {other}"):
        if pixels.plane == "axial":
            yield m[0], (y < of(m[2])[1]) == (m[1] == "in front of")
    for m in find(rf"patient's (left|right) of {other}"):
        known = pixels.plane in ("axial", "coronal") and "crop" not in pixels.part
        yield m[0], known and (x > of(m[2])[0]) == (m[1] == "left")
    for m in find(rf"between {other} and {other} in {PICTURE}"):
        pairs = zip(of(m[1]), of(m[2]), (x, y), strict=True)
        yield m[0], any(min(a, b) < own < max(a, b) for a, b, own in pairs)
    for m in find(rf"(larger|smaller) than (?:both )?{other}(?: and {other})? here"):
        compared = [size(name) for name in m.groups()[1:] if name]
        yield m[0], area > max(compared) if m[1] == "larger" else area < min(compared)
    for m in find(rf"(at least twice|less than half) as large as {other}"):
        ratio = area / size(m[2])
        yield m[0], ratio >= 2 if m[1] == "at least twice" else ratio <= 0.5
    for m in find(rf"(closer to|further from) the cent(?:re|er) of {PICTURE} than {other}"):
        height, width = pixels.masks[label].shape
        own, its = (np.hypot((a - 0.5) * width, (b - 0.5) * height) for a, b in ((x, y), of(m[2])))
        yield m[0], bool(own < its) == (m[1] == "closer to")
    side = re.match(r".*\b(left|right)\b", label)
    for m in find(r"(?:on|in|at|to) the patient's (left|right)(?! of)"):
        if side:
            yield m[0], m[1] == side[1]


class Audit:
    """Counts what is wrong in the implicit records of a set."""

    def __init__(self, data: pathlib.Path) -> None:
        self.data, self.names = data, Names()
        self.count: collections.Counter[str] = collections.Counter()
        self.wrong: dict[str, list[str]] = {"leak": [], "false": [], "unread": []}
        lines = (data / "index.jsonl").read_text(encoding="utf-8").splitlines()
        self.entries = {entry["image"]: entry for entry in map(json.loads, lines)}
        self.image = ""

    def add(self, record: dict) -> None:
        """Judges one record; those of an image come one after the other."""
        if record["image"] != self.image:
            self.image, self.asked = record["image"], set()
            self.pixels = Pixels(self.data, self.entries[self.image])
        question, label = record["question"], record["label"]
        shown = f"{label}: {question}"
        if self.names.leak(question, label):
            self.wrong["leak"].append(shown)
        number = len(question.split())
        low, high = (5, 15) if record["length"] == "short" else (10, 20)
        key = (label, letters(question))
        located = record["perspective"] == "location"
        found = [holds for _, holds in claims(question.lower(), label, self.pixels, self.names)]
        self.count.update(
            {
                "implicit": 1,
                "located": located,
                "claims": len(found),
                "of wrong length": not low <= number <= high,
                "asked twice": key in self.asked,
            }
        )
        self.asked.add(key)
        if located and not found:
            self.wrong["unread"].append(shown)
        if not all(found):
            self.wrong["false"].append(shown)

    def report(self, sample: int) -> str:
        """Counts, rates, and some of the wrong ones."""
        lines = [f"{name}: {number}" for name, number in self.count.items()]
        for name, texts in self.wrong.items():
            lines.append(f"{name}: {len(texts)} ({self.rate(name):.4%})")
            lines += [f"    {text}" for text in texts[:sample]]
        return "\n".join(lines)

    def rate(self, name: str) -> float:
        """Of leaks over all questions, of false claims over those that make one."""
        whole = self.count["claims" if name == "false" else "implicit"]
        return len(self.wrong[name]) / max(1, whole)

    def passes(self) -> bool:
        """Whether the rates are within what is promised."""
        kept = self.rate("leak") <= MOST_LEAKS and self.rate("false") <= MOST_FALSE
        return kept and not self.count["asked twice"] and not self.count["of wrong length"]


def audit(folder: pathlib.Path, data: pathlib.Path) -> Audit:
    """The audit of all implicit records of a set."""
    found = Audit(data)
    for split in ("train", "val", "test"):
        with (folder / f"{split}.jsonl").open(encoding="utf-8") as lines:
            for record in map(json.loads, lines):
                if record["kind"] == "implicit":
                    found.add(record)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--sample", type=int, default=10, help="wrong ones shown of each kind")
    chosen = parser.parse_args()
    result = audit(chosen.folder, chosen.data)
    sys.stdout.write(result.report(chosen.sample) + "\n")
    sys.exit(0 if result.passes() else 1)
