"""Where a run computes: a GPU or the CPU, and how many processes share its batches (accelerate).

`torchrun` or `accelerate launch` start the processes; each of them runs the same recipe on batches
of its own, and gradients are averaged over all (DDP).
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DistributedType, gather_object

from ..errors import DataError
from .recipe import Recipe

SPREAD = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def find_machine(recipe: Recipe) -> Accelerator:
    """This process's device, its place among the others, and the recipe's trackers.

    Raises:
        DataError: processes that cannot share the recipe's batches, or do not know each other; an
            unknown tracker.
    """
    try:
        machine = Accelerator(
            cpu=not torch.cuda.is_available(),
            log_with=recipe.trackers,
            project_dir=Path(recipe.out),
            kwargs_handlers=[
                # Which losses there are, and so which weights they reach, depends on the batch.
                DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False),
                # The first process encodes, measures and writes while the others wait.
                InitProcessGroupKwargs(timeout=timedelta(hours=12)),
            ],
        )
    except ValueError as error:
        raise DataError(f"recipe: {error}") from error
    _check(machine, recipe)
    return machine


def _check(machine: Accelerator, recipe: Recipe) -> None:
    if machine.distributed_type not in SPREAD:
        kind = machine.distributed_type.value
        raise DataError(f"a training can be spread over processes by DDP, not by {kind}")
    if int(os.environ.get("WORLD_SIZE", 1)) != machine.num_processes:
        raise DataError("the processes do not find each other: start them with torchrun")
    for stage in recipe.stages:
        if stage.task != "align" and stage.accumulate % machine.num_processes:
            raise DataError(
                f"stage {stage.name}: its {stage.accumulate} batches a step cannot be shared "
                f"evenly by {machine.num_processes} processes: set accumulate to a multiple"
            )


def mean_over_processes(values: dict[str, float]) -> dict[str, float]:
    """Of each name the mean; a process without it counts as zero."""
    parts = gather_object([values])
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) / len(parts) for name in names}
