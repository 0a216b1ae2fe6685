"""Other people's checkpoints into folders of ours: recognised by their keys, strict, tensor by
tensor.

    files ─▶ plan (names.py: whose is it, which name becomes which) ─▶ configuration (sizes.py)
          ─▶ check against the model on the meta device ─▶ shards and manifest (writing.py)

Nothing is written before every name and shape is settled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedConfig

from ... import __version__
from ...calibration import Calibration
from ...errors import ModelError
from ...processing import MediSeeProcessor, ProcessorConfig
from ..configuration import BOX_TOKEN, SEG_TOKEN, MediSeeConfig, SegmenterConfig, candidate_tokens
from ..mllm import build_mllm
from ..modeling import MediSeeModel
from ..segmenter import Segmenter
from .files import WeightFile, all_files, open_file
from .plan import Piece, Plan, check_fit, make_plan
from .sizes import (
    LANGUAGE,
    MEDSAM_INPUT,
    SAM_INPUT,
    SEGMENTER,
    TOWER,
    Beside,
    Shapes,
    llava_config,
    segmenter_config,
)
from .text import IMAGE_TOKEN, MISTRAL, VICUNA, read_tokenizer
from .writing import MANIFEST, Progress, bytes_of, checksums, new_folder, write_json, write_shards

__all__ = ["Conversion", "convert", "expected_shapes", "lay_out"]

IMAGE_ID = 0
"""`<unk>`'s row stands for image tokens: every vocabulary has it and no text ever uses it."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

BOX_PROMPT_NOTE = (
    "compat.box_prompt: the authors' code rounds the box prompt to bfloat16 and scales both axes "
    "by the padded square; this model was trained so, and the switch in config.json restores it"
)
FRESH_NOTE = (
    "routers, box decoder and projector are new and untrained: fine-tune before asking anything"
)
NO_TOKENIZER_NOTE = (
    "no tokenizer beside the weights, so it cannot be asked yet: convert again with "
    "--tokenizer FOLDER, where FOLDER holds tokenizer.model or tokenizer.json"
)
OTHER_TOWER_NOTE = (
    "the authors replace the vision tower inside LLaVA-Med's file by OpenAI's CLIP ViT-L/14-336; "
    "give that folder as a second source for the same start"
)


@dataclass(frozen=True)
class Conversion:
    """What was made of what.

    Attributes:
        titles: the sources, for people.
        kind: "medisee", "llava" or "segmenter".
        weights: how many tensors.
        parameters: how many numbers.
        notes: what a user should know.
    """

    titles: tuple[str, ...]
    kind: str
    weights: int
    parameters: int
    notes: tuple[str, ...]


@dataclass
class Layout:
    """A planned model: its configuration, and its pieces by the names that it is stored under.

    Attributes:
        start: what our full names lose when this part is stored alone.
        tokenizer: with all tokens added; None where there was none.
        processor: None where the part cannot be asked.
    """

    kind: str
    config: PreTrainedConfig
    pieces: dict[str, Piece]
    start: str = ""
    tokenizer: Tokenizer | None = None
    processor: ProcessorConfig | None = None
    notes: list[str] = field(default_factory=list)


def convert(
    sources: Sequence[Path],
    target: Path,
    *,
    tokenizer: Path | None = None,
    dtype: str | None = None,
    medsam: bool | None = None,
    overwrite: bool = False,
    progress: Progress = lambda step: None,
) -> Conversion:
    """Converts one checkpoint, or a language model and a segmenter into a fresh MediSee.

    Args:
        sources: files or folders; all of them together are one checkpoint, or its parts.
        target: the folder to write.
        tokenizer: folder of a tokenizer that does not lie beside the weights.
        dtype: "bf16", "fp16" or "fp32"; None keeps what is stored.
        medsam: whether a plain SAM expects MedSAM's input; None: told by the file's name.
        overwrite: replace `target`.
        progress: is told each step.

    Raises:
        ModelError: files that are missing, damaged, unknown or mixed, shapes that do not fit.
    """
    progress("reading headers")
    paths = all_files(sources)
    files: dict[Path, WeightFile] = {path: open_file(path) for path in paths}
    plan = make_plan(files)
    folders = list(dict.fromkeys(s if s.is_dir() else s.parent for s in sources))
    beside = Beside.read(folders)
    if medsam is None:
        medsam = any("medsam" in path.name.lower() for path in paths)
    layout = lay_out(plan, beside, [tokenizer] if tokenizer else folders, medsam)
    with new_folder(target, overwrite) as folder:
        _write(layout, beside, files, folder, DTYPES[dtype] if dtype else None, progress)
        _write_manifest(plan, layout, paths, folder, progress)
    shapes = [piece.shape for piece in layout.pieces.values()]
    return Conversion(
        tuple(source.title for source in plan.sources),
        layout.kind,
        len(shapes),
        sum(bytes_of(shape, torch.int8) for shape in shapes),
        tuple(plan.notes + layout.notes),
    )


def lay_out(plan: Plan, beside: Beside, folders: Sequence[Path], medsam: bool = False) -> Layout:
    """The model that a plan's pieces make; strict in every name and shape.

    Args:
        folders: where a tokenizer may lie.

    Raises:
        ModelError: pieces that make no model.
    """
    whole, mllm, segmenter = (plan.source(part) for part in ("whole", "mllm", "segmenter"))
    if whole is not None:
        layout = _whole(plan, beside, folders)
    elif mllm is not None and segmenter is not None:
        layout = _fresh(plan, beside, folders, medsam)
    elif segmenter is not None and plan.source("tower") is None:
        config = segmenter_config(plan.shapes, beside, MEDSAM_INPUT if medsam else SAM_INPUT)
        layout = Layout("segmenter", config, plan.pieces, SEGMENTER, notes=_input_note(config))
    elif mllm is not None:
        _need_tower(plan)
        config = llava_config(plan.shapes, beside, linear=False, image_token=IMAGE_ID)
        layout = Layout("llava", config, plan.pieces, "mllm.", read_tokenizer(folders, ()))
    else:
        raise ModelError("CLIP's vision tower alone is no model; give LLaVA or LISA with it")
    if mllm is not None and mllm.name == "llava" and plan.source("tower") is None:
        layout.notes.append(OTHER_TOWER_NOTE)
    check_fit(
        {name: piece.shape for name, piece in layout.pieces.items()}, expected_shapes(layout.config)
    )
    return layout


def expected_shapes(config: PreTrainedConfig) -> Shapes:
    """Full names and shapes of a configuration's model, built on the meta device."""
    with torch.device("meta"):
        model, start = _build(config)
    return {f"{start}{name}": tuple(value.shape) for name, value in model.state_dict().items()}


def _build(config: PreTrainedConfig) -> tuple[nn.Module, str]:
    if isinstance(config, MediSeeConfig):
        return MediSeeModel(config), ""
    if isinstance(config, SegmenterConfig):
        return Segmenter(config), SEGMENTER
    return build_mllm(config), "mllm."


def _input_note(config: SegmenterConfig) -> list[str]:
    if config.encoder != "sam":
        return []
    name = "MedSAM's" if config.normalisation == "minmax" else "SAM's"
    return [
        f"input: {name} preprocessing is assumed; the keys of SAM and MedSAM are the same, "
        "--medsam or --no-medsam says which it is"
    ]


def _need_tower(plan: Plan) -> None:
    if not any(name.startswith(TOWER) for name in plan.pieces):
        raise ModelError(
            f"{plan.sources[0].title} comes without its vision tower here; give the folder of CLIP "
            "(openai/clip-vit-large-patch14-336; LISA: clip-vit-large-patch14) as a second source"
        )


# ---- whole models --------------------------------------------------------------------------------


def _whole(plan: Plan, beside: Beside, folders: Sequence[Path]) -> Layout:
    """MediSee, LISA or READ: candidates at the vocabulary's end, as their code added them."""
    _need_tower(plan)
    name, shapes = plan.sources[0].name, plan.shapes
    medisee = name == "medisee"
    added = [SEG_TOKEN, BOX_TOKEN] if medisee else [SEG_TOKEN, "<im_start>", "<im_end>"]
    tokenizer = read_tokenizer(folders, added)
    candidates = candidate_tokens(2 if medisee else 1)
    ids = _ids(candidates, tokenizer, beside, shapes, added)
    mllm = llava_config(shapes, beside, linear=name == "lisa", image_token=IMAGE_ID)
    config = MediSeeConfig(
        mllm=mllm,
        segmenter=segmenter_config(shapes, beside, SAM_INPUT),
        num_candidates=len(candidates),
        candidate_token_ids=ids,
        **(_medisee_heads(shapes) if medisee else _lisa_heads(name)),
    )
    notes = [BOX_PROMPT_NOTE] if medisee else []
    return _askable(config, plan.pieces, tokenizer, MISTRAL if medisee else VICUNA, notes)


def _medisee_heads(shapes: Shapes) -> dict[str, Any]:
    for name in ("fusion.router_seg.gate.0.weight", "box_decoder.mlp.layers.0.weight"):
        if name not in shapes:
            raise ModelError(f"the checkpoint is incomplete: {name} is missing")
    return {
        "router_hidden": shapes["fusion.router_seg.gate.0.weight"][0],
        "box_hidden": shapes["box_decoder.mlp.layers.0.weight"][0],
        "compat": {"box_prompt": "authors"},
    }


def _lisa_heads(name: str) -> dict[str, Any]:
    prompts = "text+points" if name == "read" else "text"
    return {"box_decoder": "none", "mask_prompts": prompts}


def _ids(
    candidates: list[str],
    tokenizer: Tokenizer | None,
    beside: Beside,
    shapes: Shapes,
    added: list[str],
) -> list[int]:
    """Ids of the candidates, by the tokenizer, by what is stated, or at the end in added order."""
    rows = shapes.get(f"{LANGUAGE}embed_tokens.weight", (0,))[0]
    if tokenizer is not None:
        ids = [int(tokenizer.token_to_id(name) or 0) for name in candidates]
        if max(ids) >= rows:
            raise ModelError(
                f"the tokenizer has {candidates[0]} at {ids[0]}, but the weights have {rows} rows: "
                "it belongs to another model"
            )
        return ids
    last = {name: rows - len(added) + place for place, name in enumerate(added)}
    stated = {SEG_TOKEN: beside.tokens.get("seg"), BOX_TOKEN: beside.tokens.get("bbox")}
    return [int(stated[name] or last[name]) for name in candidates]


def _askable(
    config: MediSeeConfig,
    pieces: dict[str, Piece],
    tokenizer: Tokenizer | None,
    template: Any,
    notes: list[str],
) -> Layout:
    processor = ProcessorConfig(
        template=template,
        candidates=tuple(candidate_tokens(config.num_candidates)),
        image_token=IMAGE_TOKEN,
        image_seq_length=config.image_seq_length,
        segmenter_size=config.segmenter.image_size,
        normalisation=config.segmenter.normalisation,
        pad=config.segmenter.pad,
        clip_size=config.mllm.vision_config.image_size,
    )
    if tokenizer is None:
        notes = [*notes, NO_TOKENIZER_NOTE]
    return Layout("medisee", config, pieces, "", tokenizer, processor, notes)


# ---- a language model and a segmenter: a MediSee that is yet to be trained -----------------------


def _fresh(plan: Plan, beside: Beside, folders: Sequence[Path], medsam: bool) -> Layout:
    _need_tower(plan)
    shapes, pieces = plan.shapes, dict(plan.pieces)
    candidates = candidate_tokens(2)
    tokenizer = read_tokenizer(folders, [SEG_TOKEN, BOX_TOKEN])
    rows = shapes[f"{LANGUAGE}embed_tokens.weight"][0]
    ids = [rows + 1, rows]
    if tokenizer is not None:
        ids = [int(tokenizer.token_to_id(name) or 0) for name in candidates]
    for name in (f"{LANGUAGE}embed_tokens.weight", "mllm.lm_head.weight"):
        pieces[name] = _grown(pieces[name], max(ids) + 1)
    grown = {name: piece.shape for name, piece in pieces.items()}
    config = MediSeeConfig(
        mllm=llava_config(grown, beside, linear=False, image_token=IMAGE_ID),
        segmenter=segmenter_config(shapes, beside, MEDSAM_INPUT if medsam else SAM_INPUT),
        candidate_token_ids=ids,
        router_hidden=1024 if shapes[f"{LANGUAGE}embed_tokens.weight"][1] >= 4096 else None,
    )
    pieces |= _new_heads(config)
    mistral = config.mllm.text_config.model_type == "mistral"
    notes = [FRESH_NOTE, *_input_note(config.segmenter)]
    return _askable(config, pieces, tokenizer, MISTRAL if mistral else VICUNA, notes)


def _grown(piece: Piece, rows: int) -> Piece:
    more = max(rows - piece.shape[0], 0)
    return replace(piece, shape=(piece.shape[0] + more, *piece.shape[1:]), new_rows=more)


def _new_heads(config: MediSeeConfig) -> dict[str, Piece]:
    """The heads at their random start; the same each time."""
    from ..heads import AdaptiveFusion, BoxDecoder, MaskPromptProjector

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = nn.ModuleDict(
            {
                "fusion": AdaptiveFusion(config),
                "box_decoder": BoxDecoder(config),
                "projector": MaskPromptProjector(
                    config.hidden_size, config.segmenter.prompt_channels
                ),
            }
        )
    state = heads.state_dict()
    return {n: Piece(tuple(v.shape), make=partial(v.clone)) for n, v in state.items()}


# ---- files ---------------------------------------------------------------------------------------


def _write(
    layout: Layout,
    beside: Beside,
    files: dict[Path, WeightFile],
    folder: Path,
    dtype: torch.dtype | None,
    progress: Progress,
) -> None:
    pieces = {name.removeprefix(layout.start): piece for name, piece in _by_file(layout.pieces)}
    kinds = {name: dtype or _stored_dtype(piece, files) for name, piece in pieces.items()}

    def load(name: str) -> torch.Tensor:
        value = pieces[name].load(files, beside.lora_alpha).to(kinds[name]).clone()
        for path, file in files.items():
            if not _from(pieces[name], path):
                file.close()
        return value

    sizes = {name: bytes_of(piece.shape, kinds[name]) for name, piece in pieces.items()}
    write_shards(sizes, load, folder, progress)
    layout.config.dtype = Counter(kinds.values()).most_common(1)[0][0]
    layout.config.save_pretrained(folder)
    _write_text(layout, folder)


def _stored_dtype(piece: Piece, files: dict[Path, WeightFile]) -> torch.dtype:
    if piece.place is None:
        return torch.float32
    return files[piece.place.file].dtypes[piece.place.name]


def _by_file(pieces: Mapping[str, Piece]) -> list[tuple[str, Piece]]:
    """In the order of their files, so that one is mapped at a time."""
    return sorted(pieces.items(), key=lambda item: str(item[1].place and item[1].place.file))


def _write_text(layout: Layout, folder: Path) -> None:
    if layout.tokenizer is None:
        return
    if layout.processor is None:
        layout.tokenizer.save(str(folder / "tokenizer.json"))
        return
    try:
        MediSeeProcessor(layout.processor, layout.tokenizer).save_pretrained(folder)
    except (ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer does not fit this model: {error}") from error
    # These models were never taught to refuse.
    Calibration("isotonic", (0.0, 1.0), (0.0, 1.0)).save(folder / "calibration.json")


def _write_manifest(
    plan: Plan, layout: Layout, paths: Sequence[Path], folder: Path, progress: Progress
) -> None:
    """What came from where, with checksums of both sides."""
    used = [path for path in paths if any(_from(piece, path) for piece in plan.pieces.values())]
    written = sorted(folder.glob("*.safetensors"))
    values = {
        "made_by": f"medisee {__version__}",
        "kind": layout.kind,
        "sources": [source.name for source in plan.sources],
        "source_files": checksums(used, progress),
        "files": checksums(written, progress),
        "left_out": plan.dropped,
        "notes": plan.notes + layout.notes,
    }
    write_json(folder / MANIFEST, values)


def _from(piece: Piece, path: Path) -> bool:
    places = [piece.place, *(piece.lora or ())]
    return any(place is not None and place.file == path for place in places)
