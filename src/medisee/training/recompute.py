"""Gradient checkpointing of a decoder that fills a cache.

transformers' own leaves the cache out, through which the questions of an image share its prefix.
Here a layer's keys and values are inputs and outputs of what is run again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

_CACHE = ("cache", "past_key_values")
"""What the argument is called within the range of transformers' versions that we allow."""


def recompute_layers(decoder: nn.Module) -> None:
    """In training, the decoder's layers keep their inputs only, and run again for gradients."""
    for number, layer in enumerate(decoder.layers):
        layer.forward = _recomputing(layer, number, layer.forward)


def _recomputing(layer: nn.Module, number: int, forward: Callable[..., Tensor]) -> Any:
    def run(hidden: Tensor, **arguments: Any) -> Tensor:
        name = next((name for name in _CACHE if arguments.get(name) is not None), None)
        if name is None or not (layer.training and torch.is_grad_enabled()):
            return forward(hidden, **arguments)
        cache: DynamicCache = arguments[name]
        filled: list[Any] = []

        def again(hidden: Tensor, *past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            fresh = DynamicCache()
            if past:
                fresh.update(*past, number)
            states = forward(hidden, **{**arguments, name: fresh})
            filled.append(fresh.layers[number])
            return states, fresh.layers[number].keys, fresh.layers[number].values

        known = cache.layers[number : number + 1]
        past = [each for layer in known for each in (layer.keys, layer.values)]
        states, keys, values = checkpoint(again, hidden, *past, use_reentrant=False)
        filled[0].keys, filled[0].values = keys, values
        cache.layers[number : number + 1] = filled[:1]
        return states

    return run
