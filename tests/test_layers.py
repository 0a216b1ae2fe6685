"""Who may import whom: imports go down only, and nothing heavy comes with the front doors."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "medisee"

BASE = {"errors", "extras", "quiet", "structures", "boxes", "entities"}
WEIGHTS = {"categories", "packing", "phrases"}


def above(rooms: str) -> set[str]:
    """The base and the rooms named."""
    return BASE.union(rooms.split())


# What the doors to people may use: protocols and results, nothing of how a model works inside.
FRONT = above("io dicomweb examples hub questions predictor volume training evaluation engine data")

# A room is a module or package below medisee; the longest name that fits a file is its room.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": BASE | {"io", "predictor"},
    "__main__": {"cli"},
    "errors": set(),
    "boxes": {"errors"},
    "extras": {"errors"},
    "quiet": set(),
    "structures": {"errors", "boxes", "io"},  # io: Answer.overlay and .save, on use
    "entities": {"errors"},
    "io": BASE | {"examples"},
    "examples": BASE | {"io"},
    "hub": BASE,
    "questions": {"errors"},
    "testing": BASE | {"questions"},
    "phrases": set(),
    "processing": BASE | {"phrases"},
    "calibration": BASE,
    "familiarity": BASE,
    "parallel": BASE,
    "categories": BASE | {"phrases"},
    "packing": BASE,
    "model": BASE | WEIGHTS | {"processing"},
    "model.convert": BASE | WEIGHTS | {"model", "processing", "calibration"},
    "model.make_random": BASE | WEIGHTS | {"model", "model.convert", "processing", "calibration"},
    "runtime": BASE | WEIGHTS | {"processing", "hub"},
    "runtime.compile": BASE | WEIGHTS | {"model", "runtime"},
    "data": BASE | {"processing"},
    "data.importers": BASE | {"io", "data"},
    "data.exporters": BASE | {"data", "engine"},
    "engine": BASE | {"data", "parallel"},
    "evaluation.metrics": BASE,
    "evaluation.summary": BASE | {"evaluation.metrics"},
    "predictor": above(
        "io examples hub questions processing model runtime calibration familiarity"
    ),
    "training": above(
        "hub processing phrases categories model model.convert runtime data engine calibration "
        "familiarity evaluation.metrics evaluation.summary"
    ),
    "evaluation": above(
        "hub predictor data engine calibration parallel evaluation.metrics evaluation.summary"
    ),
    "evaluation.systems": above("hub predictor processing model model.convert data evaluation"),
    "volume": BASE | {"io", "questions"},
    "dicomweb": BASE | {"io"},
    "serve": FRONT,
    "mcp_server": FRONT,
    "commands": FRONT
    | {
        "parallel",
        "model.convert",
        "model.make_random",
        "runtime.compile",
        "data.importers",
        "data.exporters",
        "evaluation.systems",
        "serve",
        "mcp_server",
    },
    "cli": BASE | {"commands"},
}
HEAVY = {"torch", "transformers", "peft", "accelerate", "onnx", "torchvision"}
LIGHT = {"safetensors"}
"""Read by both runtimes, and only there."""
MAY_IMPORT_TORCH = (
    "model", "training", "data.dataset", "predictor", "runtime.compile", "evaluation.systems",
)  # fmt: skip
MAY_IMPORT_SAFETENSORS = (*MAY_IMPORT_TORCH, "categories", "packing", "runtime")
NEVER = {"torchvision", "timm", "monai", "supervision", "instructor", "distilabel"}


def room_of(module: str) -> str:
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((name for name in names if name in MAY_IMPORT), parts[0])


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imported(path: Path) -> Iterator[str]:
    """Absolute names of all that a file imports, on use or at once."""
    package = ["medisee", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down_only(path: Path) -> None:
    room = room_of(module_of(path))
    assert room in MAY_IMPORT, f"{room} is new: give it a place in MAY_IMPORT"
    names = [n.split(".", 1)[1] for n in imported(path) if n.startswith("medisee.")]
    rooms = {room_of(name) for name in names if name != "__version__"}
    assert rooms - MAY_IMPORT[room] - {room} == set()


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_torch_stays_in_its_rooms(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    assert tops & NEVER == set()
    if not module_of(path).startswith(MAY_IMPORT_TORCH):
        assert tops & HEAVY == set()
    if not module_of(path).startswith(MAY_IMPORT_SAFETENSORS):
        assert tops & LIGHT == set()


@pytest.mark.parametrize("statement", ["import medisee", "import medisee.cli"])
def test_front_doors_are_light(statement: str) -> None:
    heavy = sorted(HEAVY | LIGHT | {"onnxruntime", "nibabel", "pydicom"})
    code = f"{statement}; import sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
