"""LoRA on attention: small trained matrices beside frozen large ones.

The paper's are rank 8 on the language model's projections of queries and values (section 4.1;
alpha 16 and dropout 0.05 from the authors' code); table 6 has them on the segmenter's encoder too.
While they train, the base's weights are frozen; `merge` adds them in, so that a saved model is an
ordinary one.
"""

from __future__ import annotations

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from ..errors import DataError
from ..model import MediSeeModel
from .recipe import Lora

MARK = ".lora_"
"""In the name of every parameter of an adapter, and of no other; a key of a stage's rates."""


def covers(prefix: str, name: str) -> bool:
    """Whether a rate's prefix names a parameter.

    Adapters are trained by their own rate, never by that of the part which they lie in.
    """
    if MARK in name or prefix == MARK:
        return prefix == MARK and MARK in name
    return name.startswith(prefix)


def add_lora(model: MediSeeModel, lora: Lora) -> None:
    """Puts adapters beside the named projections of one part, which change nothing yet.

    Raises:
        DataError: the part has no such projection.
    """
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.projections),
    )
    language = lora.part == "language"
    part = model.mllm.get_decoder() if language else model.segmenter.vision_encoder
    try:
        inject_adapter_in_model(config, part)
    except ValueError as error:
        names, what = ", ".join(lora.projections), "language model" if language else "encoder"
        raise DataError(f"lora: the {what} has no projection called {names}") from error


def merge(model: MediSeeModel) -> None:
    """Adds all adapters to the weights beside them and takes them out."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, _base(module))


def _base(layer: LoraLayer) -> nn.Module:
    base = layer.get_base_layer()
    assert isinstance(base, nn.Module)
    return base
