"""One optimizer step over several processes: each takes a part, and gradients are summed once.

DistributedDataParallel sums inside each backward pass, so every process must run the same number of
them. Here a process may have no samples left, split a batch because memory is short, or meet a
signal without a gradient. Summing once a step keeps the result exact: the gradient of the mean over
all samples, however they are divided.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn

from modulate.config.recipe import Recipe
from modulate.config.sections import Training
from modulate.distributed.launch import join, leave
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import RecipeError
from modulate.hosts.fsdp import refuse_out_of_step
from modulate.interfaces.components import Sample
from modulate.training.train_step import StepStats, TrainStep


@contextmanager
def joined(recipe: Recipe, training: bool = True) -> Iterator[ProcessGroup]:
    """Join the processes launched with this one, on the recipe's device, and leave them at the end.

    For a program that trains (``training``) or evaluates, and ends. Raises :class:`RecipeError` for
    what a sharded host cannot do, before anything is loaded.
    """
    _, params = recipe.host.resolved("host")
    processes = join(getattr(params, "device", "auto"))
    try:
        with processes.fail_together():
            refuse_out_of_step(recipe, processes, training)
            yield processes
    finally:
        leave()


def check_size(processes: ProcessGroup, settings: Training) -> None:
    """Raise :class:`RecipeError` if a step has fewer parts than there are processes.

    Some processes would never have anything to do.
    """
    whole = settings.batch_by == "clip"
    parts = settings.accumulation * (1 if whole else settings.batch_size)
    if processes.size > parts:
        what = (
            "batches, which `training.batch_by: clip` keeps whole"
            if whole
            else "samples (training.batch_size times training.accumulation)"
        )
        raise RecipeError(
            f"{processes.size} processes share an optimizer step of {parts} {what}: some would"
            " never have anything to do. Start fewer, or raise `training.accumulation`."
        )


def own_part(
    processes: ProcessGroup, settings: Training, batches: Iterator[list[Sample]]
) -> Iterator[list[Sample]]:
    """Yield this process's part of each of ``batches``; some parts are empty.

    In rank order, all processes' parts of a step join to the step. Batches of one clip stay whole.
    ``batches`` is endless and starts at the beginning of a step.
    """
    while True:
        step = [next(batches) for _ in range(settings.accumulation)]
        places = [(i, k) for i, batch in enumerate(step) for k in range(len(batch))]
        if settings.batch_by == "clip":
            chosen = set(processes.local_part(range(len(step))))
            mine = {place for place in places if place[0] in chosen}
        else:
            mine = set(processes.local_part(places))
        yield from (
            [sample for k, sample in enumerate(batch) if (i, k) in mine]
            for i, batch in enumerate(step)
        )


def add_up(
    processes: ProcessGroup,
    accelerator: Accelerator,
    train_step: TrainStep,
    stats: StepStats,
    before: int,
    parameters: Sequence[nn.Parameter],
) -> StepStats:
    """Sum all processes' gradients of a step into ``parameters`` and return the step's totals.

    ``before``: number of samples that had failed before the step. Samples that failed in it, in any
    process, are recorded in all.
    """
    if processes.size == 1:
        return stats
    if accelerator.scaler is not None:
        accelerator.scaler.scale(
            torch.zeros(1, device=parameters[0].device)
        )  # The scaler creates its scale at the first loss, and this process may have had none.
    flat = torch.cat(
        [
            (p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() * stats.n)
            for p in parameters
        ]
    )  # Each gradient is of a mean over n samples: back to the sum, so that parts add up.
    has = [p.grad is not None for p in parameters]
    own = {
        "tally": vars(stats),
        "has": has,
        "failed": dict(list(train_step.failed.items())[before:]),
    }
    every = processes.all_gather(own)
    _merge_failed(train_step, before, every)
    total = StepStats()
    for one in (StepStats(**found["tally"]) for found in every):
        total.loss += one.loss
        total.right += one.right
        total.active += one.active
        total.ids += one.ids
        total.split = total.split or one.split
        total.apart += one.apart
    if total.n:
        processes.all_reduce_sum(flat)
        parts = flat.div_(total.n).split([p.numel() for p in parameters])
        for i, (p, part) in enumerate(zip(parameters, parts, strict=True)):
            p.grad = part.view_as(p) if any(found["has"][i] for found in every) else None
    return total


def _merge_failed(
    train_step: TrainStep, before: int, every: Sequence[dict[str, dict[str, str]]]
) -> None:
    known = dict(list(train_step.failed.items())[:before])
    train_step.failed.clear()
    train_step.failed.update(known)
    for found in every:
        train_step.failed.update(found["failed"])
    train_step.refuse_too_many()
