"""Every system of the paper's tables, and the plain comparisons: who they are, how to make them.

One table, one file per system. A system is made by a function `build(setup, **settings)` that
gives a predictor (`open(image)`, then `ask(questions)`); its settings are the function's own
arguments. `make_system("medsam-true-box", setup, {"weights": "medsam_vit_b.pth"})` is the door.
The table names functions by text, so that reading it loads nothing.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from medisee.data.sa_med2d import Index
from medisee.errors import DataError
from medisee.evaluation.pairs import Pair
from medisee.evaluation.predictions import Model

__all__ = ["SYSTEMS", "Readiness", "Setup", "System", "find_system", "make_system"]


class Readiness(str, Enum):
    """How far a system was proved; tables print it, and nothing claims more."""

    VERIFIED = "verified"
    """official weights ran, and a published figure was met"""
    PARITY = "parity"
    """equals the official implementation on random weights"""
    KEYS = "keys"
    """the official key list loads without a rest; shapes and run tested on random weights"""
    ADAPTER = "adapter"
    """drives another's process, service or transformers model; tested against a double of it"""
    UNTESTED = "untested"
    """not proved"""
    OWN = "own"
    """a comparison of ours: there is no other implementation to equal"""


@dataclass(frozen=True)
class Setup:
    """What the systems of a run may use: the data set, what will be asked, where to compute.

    Only the plain comparisons and those that are given the true box look at `pairs` and `index`;
    cascades read the modality there.
    """

    index: Index
    split: str
    pairs: Sequence[Pair]
    device: str | None = None

    @cached_property
    def modalities(self) -> Mapping[str, str]:
        """Image file name -> modality."""
        return {Path(pair.image).name: pair.modality for pair in self.pairs}


@dataclass(frozen=True)
class System:
    """One row of the tables.

    key: what the command line calls it; name: what the paper calls it; needs: what the user
    brings; licence: of code and weights; build: "module:function" below this package; preset:
    settings that make this row of a function that makes several.
    """

    key: str
    name: str
    readiness: Readiness
    needs: str
    licence: str
    build: str
    preset: Mapping[str, str] = field(default_factory=dict)

    @property
    def function(self) -> Callable[..., Model]:
        """The function that makes the system, imported on use."""
        module, name = self.build.split(":")
        return getattr(import_module(f"{__name__}.{module}"), name)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the settings that `bench run --set` takes."""
        fields = {**asdict(self), "readiness": self.readiness.value}
        return {name: fields[name] for name in ("key", "name", "readiness", "needs", "licence")}


def find_system(name: str) -> System:
    """The system with this key, or the one that a file of the user's makes ("my.py:build").

    Raises DataError for one that is not there, with the nearest name.
    """
    path = name.rpartition(":")[0]
    if path.endswith(".py"):
        return _OwnFile(name, Path(path).stem, Readiness.UNTESTED, "", "not stated", name)
    for system in SYSTEMS:
        if system.key == name:
            return system
    close = difflib.get_close_matches(name, [system.key for system in SYSTEMS], n=1)
    hint = f"did you mean {close[0]}?" if close else "medisee bench systems lists them all"
    raise DataError(f"there is no system {name!r}; {hint}")


def make_system(name: str, setup: Setup, settings: Mapping[str, str]) -> Model:
    """Makes a system; DataError for a setting that is missing, or that it does not know."""
    system = find_system(name)
    function, given = system.function, {**system.preset, **settings}
    parameters = list(inspect.signature(function).parameters.values())[1:]
    takes = {p.name: p.default is p.empty for p in parameters}
    listed = ", ".join(f"{n}{'' if needed else ' (optional)'}" for n, needed in takes.items())
    if unknown := sorted(given.keys() - takes.keys()):
        raise DataError(f"{name} has no setting {unknown[0]}; it takes: {listed or 'none'}")
    if missing := [n for n, needed in takes.items() if needed and n not in given]:
        raise DataError(f"{name} needs --set {missing[0]}=...: {system.needs or listed}")
    return function(setup, **given)


class _OwnFile(System):
    """A system in a Python file of the user's."""

    @property
    def function(self) -> Callable[..., Model]:
        path, _, name = self.build.rpartition(":")
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        if spec is None or spec.loader is None or not Path(path).is_file():
            raise DataError(f"{path}: there is no such Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not hasattr(module, name):
            raise DataError(f"{path}: has no function {name}")
        return getattr(module, name)


_APACHE = "Apache-2.0 / Apache-2.0"
_GATED = "Apache-2.0 / research and development use"
_NONE = "none stated / the user's own"
_MEDSAM = "segmenter=FOLDER of medisee convert medsam_vit_b.pth"
_SAM_MED2D = "segmenter=FOLDER of medisee convert sam-med2d_b.pth"
_DINO = "dino=FOLDER of IDEA-Research/grounding-dino-*"
_BIOMEDPARSE = "command=COMMAND that answers as docs/add_a_system.md says"
_IMIS = "segmenter=FILE, tokenizer=tokenizer.json of CLIP ViT-B/32"
_JANUS = "namer=FOLDER of deepseek-community/Janus-Pro-*"
_LLAVA_MED = "namer=FOLDER of LLaVA-Med in transformers' layout"
_GPT = "endpoint=URL, namer=MODEL (key: environment variable OPENAI_API_KEY)"
_UNI_MED = "command=COMMAND that answers as docs/add_a_system.md says"
_FOLDER = "model=FOLDER that medisee convert or medisee train wrote"
_MEDISEE = "Apache-2.0 / research only (LLaVA-Med)"
_OWN = "Apache-2.0"

Row = tuple[str, str, Readiness, str, str, str, dict[str, str]]

_ROWS: tuple[Row, ...] = (
    # key, name in the paper, readiness, what the user brings, licence of code / weights, builder
    ("grounding-dino+sam-med2d", "Grounding DINO + SAM-Med2D", Readiness.ADAPTER,
     f"{_DINO}, {_SAM_MED2D}", _APACHE, "grounding_dino:build", {"kind": "sam-med2d"}),
    ("grounding-dino+medsam", "Grounding DINO + MedSAM", Readiness.ADAPTER,
     f"{_DINO}, {_MEDSAM}", _APACHE, "grounding_dino:build", {"kind": "medsam"}),
    ("biomedparse", "BiomedParse", Readiness.ADAPTER,
     _BIOMEDPARSE, _GATED, "external:build", {"system": "BiomedParse"}),
    ("imis-net", "IMIS-Net", Readiness.PARITY, _IMIS, _NONE, "imis_net:build", {}),
    ("janus-pro+biomedparse", "Janus-Pro + BiomedParse", Readiness.ADAPTER,
     f"{_JANUS}, {_BIOMEDPARSE}", f"MIT / DeepSeek; {_GATED}", "cascade:janus_biomedparse", {}),
    ("llava-med+biomedparse", "LLaVA-Med + BiomedParse", Readiness.ADAPTER,
     f"{_LLAVA_MED}, {_BIOMEDPARSE}", f"MSR research; {_GATED}", "cascade:llava_biomedparse", {}),
    ("gpt-4o+biomedparse", "GPT-4o + BiomedParse", Readiness.ADAPTER,
     f"{_GPT}, {_BIOMEDPARSE}", f"of the service; {_GATED}", "cascade:service_biomedparse", {}),
    ("janus-pro+imis-net", "Janus-Pro + IMIS-Net", Readiness.ADAPTER,
     f"{_JANUS}, {_IMIS}", f"MIT / DeepSeek; {_NONE}", "cascade:janus_imis", {}),
    ("llava-med+imis-net", "LLaVA-Med + IMIS-Net", Readiness.ADAPTER,
     f"{_LLAVA_MED}, {_IMIS}", f"MSR research; {_NONE}", "cascade:llava_imis", {}),
    ("gpt-4o+imis-net", "GPT-4o + IMIS-Net", Readiness.ADAPTER,
     f"{_GPT}, {_IMIS}", f"of the service; {_NONE}", "cascade:service_imis", {}),
    ("lisa-7b", "LISA-7B", Readiness.KEYS,
     _FOLDER, "Apache-2.0 / Llama", "medisee_family:lisa", {}),
    ("lisa-13b", "LISA-13B", Readiness.KEYS,
     _FOLDER, "Apache-2.0 / Llama", "medisee_family:lisa", {}),
    ("uni-med", "Uni-Med", Readiness.ADAPTER,
     _UNI_MED, _NONE, "external:build", {"system": "Uni-Med"}),
    ("llava-med+uni-med", "LLaVA-Med + Uni-Med", Readiness.ADAPTER,
     f"{_LLAVA_MED}, {_UNI_MED}", f"MSR research; {_NONE}", "cascade:llava_unimed", {}),
    ("medisee+read", "MediSee + READ", Readiness.KEYS,
     _FOLDER, _MEDISEE, "medisee_family:with_points", {}),
    ("medisee", "MediSee", Readiness.PARITY, _FOLDER, _MEDISEE, "medisee_family:build", {}),
    ("medisee-ft", "MediSee (ft)", Readiness.PARITY,
     _FOLDER, _MEDISEE, "medisee_family:build", {}),
    ("medsam-true-box", "MedSAM (true box)", Readiness.KEYS,
     _MEDSAM, _APACHE, "plain:true_box", {"kind": "medsam"}),
    ("imis-net-true-box", "IMIS-Net (true box)", Readiness.PARITY,
     _IMIS, _NONE, "imis_net:true_box", {}),
    # plain comparisons, and what is shipped
    ("nano", "MediSee nano", Readiness.OWN, "nothing", "Apache-2.0 / CC BY-NC-SA 4.0",
     "medisee_family:build", {"model": "nano"}),
    ("shuffled", "the same model, questions of other images", Readiness.OWN,
     "model=NAME or FOLDER", _OWN, "plain:shuffled", {}),
    ("retrieval", "nearest entity of the knowledge base + a model asked for it by name",
     Readiness.OWN, "model=NAME or FOLDER", _OWN, "plain:retrieval", {}),
    ("litemedsam-true-box", "true box given to LiteMedSAM", Readiness.OWN,
     "segmenter=FOLDER of medisee convert lite_medsam.pth", _APACHE, "plain:true_box",
     {"kind": "litemedsam"}),
    ("category-mean", "mean mask of the category", Readiness.OWN,
     "nothing", _OWN, "plain:category_mean", {}),
    ("median-box", "median box of the category", Readiness.OWN,
     "nothing", _OWN, "plain:median_box", {}),
    ("centred-box", "centred box", Readiness.OWN, "nothing", _OWN, "plain:centred_box", {}),
)  # fmt: skip

SYSTEMS: tuple[System, ...] = tuple(System(*row) for row in _ROWS)
"""In the order of the paper's tables, then our own."""
