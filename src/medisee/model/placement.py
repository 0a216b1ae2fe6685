"""Where a model runs and in which precision: planned and told before a weight is read.

    fp32   as trained; small models
    bf16   half the memory; the default from a billion numbers on
    int8   a quarter; on CPUs without bf16 units also the quickest
    int4   an eighth; never chosen by itself: masks differ visibly, see docs/fullsize.md

Only the language model's layers are kept in 8 or 4 bits; the mask path is always fp32. Weights
come from safetensors tensor by tensor, mapped into memory, straight to their device and
precision: there is never a second copy of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .. import packing
from ..errors import ModelError
from .compact import CompactLinear, fits
from .configuration import MediSeeConfig
from .modeling import MediSeeModel

LARGE = 10**9
"""From so many numbers on, bf16 is the default and the memory is told before loading."""

BITS = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4}
PRECISIONS = tuple(BITS)
_QUESTIONS, _TOKENS = 20, 128
_GB = 1e9

logger = logging.getLogger("medisee")


@dataclass(frozen=True)
class Placement:
    """Where and how.

    Attributes:
        devices: device of each part by the start of its names; "" is the rest.
        precision: how the language model's layers are kept.
        compute: precision of everything else, and of products.
        weights, working: bytes of the weights, and of what answering takes beside them.
    """

    devices: Mapping[str, torch.device]
    precision: str
    compute: torch.dtype
    weights: int
    working: int

    @property
    def main(self) -> torch.device:
        """Where images and questions go in."""
        return self.devices[""]

    def describe(self) -> str:
        """One line for people."""
        places = ", ".join(dict.fromkeys(str(device) for device in self.devices.values()))
        return (
            f"{self.weights / _GB:.1f} GB of weights in {self.precision} on {places}, and about "
            f"{self.working / _GB:.1f} GB while answering"
        )

    def device_of(self, name: str) -> torch.device:
        """Device of a weight: that of the longest start that fits."""
        starts = [
            start for start in self.devices if f"{name}.".startswith(f"{start}." if start else "")
        ]
        return self.devices[max(starts, key=len)]


def plan_placement(
    config: MediSeeConfig, device: str | None = None, precision: str | None = None
) -> Placement:
    """Chooses what was not given, by the model's size and by what there is.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps"; None: GPUs where there are, several where one is
            too small.
        precision: one of `PRECISIONS`.

    Raises:
        ModelError: an unknown precision, a device that is not there, or too little memory.
    """
    if precision is not None and precision not in BITS:
        raise ModelError(f"there is no precision {precision!r}; choose {', '.join(PRECISIONS)}")
    sizes = _sizes(config)
    count = sum(sizes.values())
    main = find_device(device)
    candidates = [precision] if precision else ["bf16", "int8"] if count >= LARGE else ["fp32"]
    if main.type == "cpu" and precision is None:
        candidates = candidates[:1]
    spread = device is None and main.type == "cuda" and torch.cuda.device_count() > 1
    plans = [_plan(config, sizes, main, each) for each in candidates]
    free = free_memory(main)
    for plan in plans:
        if free is None or plan.weights + plan.working <= free:
            return plan
        if spread and (several := _several(config, plan)) is not None:
            return several
    least = plans[-1]
    assert free is not None  # without it, the first plan was taken
    raise ModelError(
        f"not enough memory: {least.describe()}, but {free / _GB:.1f} GB are free; close other "
        f"programs, or choose a lower precision ({', '.join(PRECISIONS)}) or another device"
    )


def _plan(
    config: MediSeeConfig, sizes: Mapping[str, int], device: torch.device, precision: str
) -> Placement:
    compute = torch.float32 if precision == "fp32" else compute_dtype(device)
    bits = BITS[precision]
    weights = 0
    for name, count in sizes.items():
        kept = bits if _is_layer(name) else _dtype_of(name, compute).itemsize * 8
        weights += count * kept // 8
    return Placement({"": device}, precision, compute, weights, _working(config, compute))


def _working(config: MediSeeConfig, compute: torch.dtype) -> int:
    """Keys and values of twenty questions on one image, and an encoder's largest tensors."""
    text = config.mllm.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * compute.itemsize
    tokens = _QUESTIONS * (config.image_seq_length + _TOKENS)
    side = config.segmenter.embedding_size**2
    encoder = 8 * side * config.segmenter.sam_config.vision_config.mlp_dim * 4
    return tokens * token + encoder


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies in it; on other CPUs that is many times slower than fp32."""
    if device.type != "cpu":
        return torch.bfloat16
    quick = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)()
    return torch.bfloat16 if quick else torch.float32


def find_device(name: str | None) -> torch.device:
    """The device called `name`, or the best.

    Raises:
        ModelError: it is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"the device {name!r} cannot be used here; try --device cpu") from error
    return device


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a device; None where nobody tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    table = Path("/proc/meminfo")
    if device.type == "cpu" and table.is_file():
        for line in table.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _several(config: MediSeeConfig, plan: Placement) -> Placement | None:
    """The same on all GPUs, layers in order; None where even together they are too small."""
    count = torch.cuda.device_count()
    free = [free_memory(torch.device("cuda", n)) or 0 for n in range(count)]
    devices = spread_layers(config.mllm.text_config.num_hidden_layers, plan, free)
    return None if devices is None else Placement(
        devices, plan.precision, plan.compute, plan.weights, plan.working
    )  # fmt: skip


def spread_layers(layers: int, plan: Placement, free: list[int]) -> dict[str, torch.device] | None:
    """Devices of the language model's layers, filled GPU by GPU; the rest is on the first.

    Args:
        free: free bytes of each GPU.
    """
    each = plan.weights * 0.95 / layers
    room = [free[0] - plan.working - plan.weights * 0.1, *(f - plan.working / 4 for f in free[1:])]
    devices, place = {"": torch.device("cuda", 0)}, 0
    for layer in range(layers):
        while place < len(room) and room[place] < each:
            place += 1
        if place == len(room):
            return None
        room[place] -= each
        devices[f"{LAYERS}{layer}"] = torch.device("cuda", place)
    return devices


LAYERS = "mllm.model.language_model.layers."
_LAYERS = (LAYERS, "mllm.language_model.layers.")
_EXACT = ("fusion.", "box_decoder.", "projector.", "segmenter.prompt_encoder.",
          "segmenter.mask_decoder.", "segmenter.shared_image_embedding.")  # fmt: skip
"""The mask path: small, and what a mask's edge depends on."""


def _is_layer(name: str) -> bool:
    return name.startswith(_LAYERS) and name.endswith("_proj.weight")


def _dtype_of(name: str, compute: torch.dtype) -> torch.dtype:
    return torch.float32 if name.startswith(_EXACT) else compute


def _sizes(config: MediSeeConfig) -> dict[str, int]:
    """Numbers of each weight."""
    with torch.device("meta"):
        model = MediSeeModel(config)
    tied = set(model.all_tied_weights_keys)
    return {n: v.numel() for n, v in model.state_dict().items() if n not in tied}


# ---- loading -------------------------------------------------------------------------------------


def load_placed(
    folder: Path, device: str | None = None, precision: str | None = None
) -> MediSeeModel:
    """A model folder's network on its device, ready to answer; not to be trained.

    Raises:
        ModelError: see `plan_placement`; weights that do not fit the configuration.
    """
    config = MediSeeConfig.from_pretrained(folder)
    placement = plan_placement(config, device, precision)
    if placement.weights > LARGE:
        logger.warning("loading %s: %s", folder.name, placement.describe())
    with torch.device("meta"):
        model = MediSeeModel(config)
    for name, value in _stored(folder):
        _put(model, name, value, placement)
    _fill_buffers(model, placement)
    model.tie_weights()
    _check_whole(model, folder)
    if len(set(placement.devices.values())) > 1:
        from accelerate import dispatch_model

        dispatch_model(model, {name: str(place) for name, place in placement.devices.items()})
    return model.eval().requires_grad_(False)


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a folder, packed or not."""
    if (folder / packing.FILE).is_file():
        for name, array in packing.load_packed(folder).items():
            yield name, torch.from_numpy(array)
        return
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ModelError(f"{folder} has no weights (model*.safetensors)")
    for path in files:
        with safe_open(path, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                yield name, stored.get_tensor(name)


def _put(model: MediSeeModel, name: str, value: Tensor, placement: Placement) -> None:
    """Puts one weight into its place, on its device and in its precision."""
    parent, _, last = name.rpartition(".")
    try:
        module = model.get_submodule(parent)
        expected = getattr(module, last)
    except AttributeError:
        raise ModelError(f"unknown weight {name}: the configuration has no place for it") from None
    if expected.shape != value.shape:
        raise ModelError(f"{name} has shape {list(value.shape)}, expected {list(expected.shape)}")
    device, bits = placement.device_of(name), BITS[placement.precision]
    compact = bits < 16 or (bits == 16 and placement.compute == torch.float32)
    if compact and _is_layer(name) and fits(module, bits):
        layer = CompactLinear(value.to(device), None, bits)
        model.set_submodule(parent, layer)
        return
    if value.is_floating_point():
        value = value.to(device, _dtype_of(name, placement.compute))
    else:
        value = value.to(device)
    if last in module._parameters:
        module._parameters[last] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[last] = value


def _fill_buffers(model: MediSeeModel, placement: Placement) -> None:
    """Buffers that no file holds (rotary frequencies, positions), from a fresh module each."""
    for name, module in model.named_modules():
        absent = [key for key in module._non_persistent_buffers_set if module._buffers[key].is_meta]
        if absent:
            fresh = type(module)(module.config)
            for key in absent:
                module._buffers[key] = fresh._buffers[key].to(placement.device_of(name))


def _check_whole(model: MediSeeModel, folder: Path) -> None:
    absent = [name for name, value in model.state_dict().items() if value.is_meta]
    if absent:
        raise ModelError(
            f"the weights in {folder} are incomplete: {len(absent)} missing, first {absent[0]} "
            f"{list(model.state_dict()[absent[0]].shape)}"
        )
