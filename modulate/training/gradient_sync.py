"""One optimizer step over several processes: which samples each takes, and what comes of all of
them together.

The gradients are added up once a step, by us. DistributedDataParallel adds up inside of a backward,
which every process must then reach equally often; here one may have no sample left, do a batch in
halves, or meet a signal without any gradient, and the sum is exact all the same: the mean over all
samples, however divided.
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
    """Join the processes that this one was started with, on the device that ``recipe`` says, for a
    program that does one thing and ends: ``training``, or scoring.

    Raises :class:`RecipeError` for what a divided host cannot do, before anything is loaded.
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
    """Raise :class:`RecipeError` when a step has less to do than there are processes, so that some
    would idle for ever.
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
    """Yield what this process takes of ``batches``: as many, of which some are empty.

    All processes' parts of a step, laid end to end, are the step.

    Batches of one clip stay whole. ``batches`` has no end, and begins with a step.
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
    tally: StepStats,
    before: int,
    parameters: Sequence[nn.Parameter],
) -> StepStats:
    """Return the totals of all processes' parts of a step, and leave the gradients of all on
    ``parameters``.

    ``before``: how many samples had failed before the step; those that failed in it, anywhere, are
    then known to all.
    """
    if processes.size == 1:
        return tally
    if accelerator.scaler is not None:
        accelerator.scaler.scale(
            torch.zeros(1, device=parameters[0].device)
        )  # fp16's scale comes to be with the first loss, and there may have been none here
    flat = torch.cat(
        [
            (p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() * tally.n)
            for p in parameters
        ]
    )  # a mean over n samples: back to their sum
    has = [p.grad is not None for p in parameters]
    own = {
        "tally": vars(tally),
        "has": has,
        "failed": dict(list(train_step.failed.items())[before:]),
    }
    every = processes.all_gather(own)
    _merge_failed(train_step, before, every)
    total = StepStats()
    for one in (StepStats(**found["tally"]) for found in every):
        total.loss = total.loss + one.loss
        total.right = total.right + one.right
        total.active = total.active + one.active
        total.ids = total.ids + one.ids
        total.split = total.split or one.split
        total.apart = total.apart + one.apart
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
