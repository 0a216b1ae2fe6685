"""The weights of a run: loaded in the precision that its recipe names, made whole at the end."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import DataError
from ..model import MediSeeModel
from ..model.inference import load_weights
from .adapters import add_lora, covers, merge
from .recipe import Recipe
from .recompute import recompute_layers

EXACT = ("fusion", "box_decoder", "projector", "segmenter.prompt_encoder",
         "segmenter.mask_decoder", "segmenter.shared_image_embedding")  # fmt: skip
"""The mask path: small, and what a mask's edge depends on."""

_WHOLE = ("segmenter", "fusion", "box_decoder", "projector", "vision_tower",
          "multi_modal_projector", "embed_tokens", "lm_head")  # fmt: skip
"""What stays of floating point where the language model's layers are integers."""


def load_trainable(start: Path, recipe: Recipe, device: torch.device) -> MediSeeModel:
    """A model folder's network, with the recipe's adapters, where and as it is trained.

    Raises:
        DataError: the recipe wants integer weights, and bitsandbytes is missing.
        ModelError: a folder that cannot be loaded.
    """
    quantised = recipe.base.startswith("int")
    model = _load_quantised(start, recipe.base, device) if quantised else load_weights(start)
    if recipe.lora is not None:
        torch.manual_seed(recipe.seed)  # adapters begin at random
        add_lora(model, recipe.lora)
    if recipe.recompute:
        recompute_layers(model.mllm.get_decoder())
    _set_precision(model, recipe)
    return model if quantised else model.to(device)


def whole_model(model: MediSeeModel, start: Path, recipe: Recipe) -> MediSeeModel:
    """The trained model as an ordinary one: adapters merged into the weights as stored."""
    if recipe.base.startswith("int"):
        trained = {n: p.detach().cpu() for n, p in model.named_parameters() if _trained(n, recipe)}
        stored = recipe.model_copy(update={"base": "bf16", "recompute": False})
        model = load_trainable(start, stored, torch.device("cpu"))
        model.load_state_dict(trained, strict=False)
    merge(model)
    return model


def _set_precision(model: MediSeeModel, recipe: Recipe) -> None:
    """fp32, or bf16 for what no stage trains and no mask's edge depends on."""
    encoder = "segmenter.vision_encoder"
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            exact = recipe.base == "fp32" or name.startswith((*EXACT, encoder))
            wide = exact or _trained(name, recipe)
            parameter.data = parameter.data.to(torch.float32 if wide else torch.bfloat16)
    names = [f"{encoder}.{name}" for name, _ in model.segmenter.vision_encoder.named_parameters()]
    if recipe.base != "fp32" and not any(_trained(name, recipe) for name in names):
        model.segmenter.vision_encoder.to(torch.bfloat16)  # statistics of its norms, too


def _trained(name: str, recipe: Recipe) -> bool:
    return any(covers(prefix, name) for stage in recipe.stages for prefix in stage.rates)


def _load_quantised(start: Path, base: str, device: torch.device) -> MediSeeModel:
    try:
        import bitsandbytes  # noqa: F401
        from transformers import BitsAndBytesConfig
    except ImportError as error:
        raise DataError(
            f"base: {base} needs the package bitsandbytes (pip install bitsandbytes); base: bf16 "
            "does without"
        ) from error
    kind = {"load_in_8bit": True} if base == "int8" else {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }  # fmt: skip
    config = BitsAndBytesConfig(**kind, llm_int8_skip_modules=list(_WHOLE))
    return MediSeeModel.from_pretrained(
        start, quantization_config=config, device_map={"": device}, dtype=torch.bfloat16
    )
