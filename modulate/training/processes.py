"""What a training needs of the machine: the processes launched with this one, and accelerate."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import LoggerType, get_available_trackers

from modulate.config.recipe import Recipe
from modulate.config.sections import Training
from modulate.distributed.launch import join, leave
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import RecipeError
from modulate.hosts.fsdp import refuse_out_of_step


@contextmanager
def process_group_for(recipe: Recipe, training: bool = True) -> Iterator[ProcessGroup]:
    """Join the processes launched with this one, on the recipe's device, until the block ends.

    They cannot join again, so this is for a program that trains (``training``) or evaluates, and
    then ends. Raises :class:`RecipeError` for what a sharded host cannot do, before anything is
    loaded.
    """
    _, params = recipe.host.resolved("host")
    processes = join(getattr(params, "device", "auto"))
    try:
        with processes.fail_together():
            refuse_out_of_step(recipe, processes, training)
            yield processes
    finally:
        leave()


def refuse_idle_processes(processes: ProcessGroup, settings: Training) -> None:
    """Raise :class:`RecipeError` if an optimizer step has fewer parts than there are processes.

    Some processes would never have anything to do.
    """
    parts = settings.accumulation
    what = "batches, which `training.batch_by: clip` keeps whole"
    if settings.batch_by != "clip":
        parts *= settings.batch_size
        what = "samples (training.batch_size times training.accumulation)"
    if processes.size > parts:
        raise RecipeError(
            f"{processes.size} processes share an optimizer step of {parts} {what}: some would"
            " never have anything to do. Start fewer, or raise `training.accumulation`."
        )


def accelerator_for(recipe: Recipe, device: torch.device, folder: Path) -> Accelerator:
    """Return accelerate's part of a training on ``device``, in the recipe's precision.

    The recipe's trackers log into ``folder``. Raises :class:`RecipeError` for a precision or a
    tracker that is not available here, where accelerate itself would go on without.
    """
    settings = recipe.training
    _refuse_unavailable(settings, device)
    try:
        accelerator = Accelerator(
            mixed_precision=settings.precision,
            cpu=device.type == "cpu",
            log_with=list(settings.trackers) or None,
            project_dir=str(folder),
        )
    except ValueError as error:
        raise RecipeError(
            f"accelerate refuses training.precision {settings.precision!r} on {device}: one process"
            f" trains in one precision. {error}"
        ) from error
    if accelerator.num_processes > 1 and accelerator.device.type != device.type:
        raise RecipeError(
            f"The processes of this run are joined for {accelerator.device.type}, and the host is"
            f" on {device}; leave host.params.device at auto, or pass it to"
            " `modulate.distributed.launch.join`."
        )
    return accelerator


def _refuse_unavailable(settings: Training, device: torch.device) -> None:
    if settings.precision == "fp16" and device.type == "cpu":
        raise RecipeError(
            "training.precision is fp16, which needs a GPU, and the host is on the CPU; take bf16"
            " or no."
        )
    for tracker in settings.trackers:
        if LoggerType(tracker) not in get_available_trackers():
            raise RecipeError(
                f"training.trackers asks for {tracker!r}, which is not installed: pip install"
                f" 'modulate[{tracker}]', or take it out."
            )
