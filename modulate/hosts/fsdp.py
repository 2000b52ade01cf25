"""A frozen host whose decoder layers are sharded among the processes of a run (FSDP2).

Each process holds a part of every layer, and all of them gather a layer when it runs. Only the host
is sharded: every process has the whole modulation, its LoRA and its hooks, and so all that trains
them. The price: all processes must run the same number of forwards and backwards through the host.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from modulate.config.recipe import Recipe
from modulate.distributed.launch import current
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import DataError, RecipeError
from modulate.hosts.host import Host, understand
from modulate.hosts.loading import HostParams
from modulate.utils.out_of_memory import first_line, is_out_of_memory


def load(family: type[Host], params: HostParams) -> tuple[nn.Module, Any]:
    """Return model and processor as ``family`` loads them, the model sharded if the run shards.

    A model to shard is loaded on the CPU: whole, it may not fit on one device.
    """
    processes = current()
    if not processes.shards:
        return family.open(params)
    model, processor = family.open(params.model_copy(update={"device": "cpu"}))
    shard(model, processes)
    return model, processor


def shard(model: nn.Module, processes: ProcessGroup) -> None:
    """Shard the decoder layers of ``model`` among the processes, and move it to their devices.

    It stays sharded for as long as it lives.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    host = understand(model)
    device = torch.device(processes.device)
    if processes.device == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    mesh = init_device_mesh(device.type, (processes.size,))
    for layer in host.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=processes.reshard)
    layer_parameters = {parameter for layer in host.layers for parameter in layer.parameters()}
    # A common root lets FSDP fetch a layer ahead of its use. It shards nothing itself: every
    # parameter outside the layers is ignored.
    fully_shard(
        host.language,
        mesh=mesh,
        reshard_after_forward=False,
        ignored_params=set(host.language.parameters()) - layer_parameters,
    )
    model.to(device)


def full_tensor(value: Tensor) -> Tensor:
    """Return a parameter's values, gathered from all processes if it is sharded.

    For a sharded one, every process must call this.
    """
    gather = getattr(value, "full_tensor", None)
    full: Tensor = value if gather is None else gather()
    return full


def refuse_out_of_step(recipe: Recipe, processes: ProcessGroup, training: bool) -> None:
    """Raise :class:`RecipeError` if some processes would run a sharded host more often than others.

    ``training``: check training and its validation; otherwise an evaluation.
    """
    if not processes.shards:
        return
    if training and recipe.training.batch_by == "clip":
        _refuse_batch_by_clip("training")
    if recipe.evaluation.batch_by == "clip":
        _refuse_batch_by_clip("evaluation")
    if recipe.features.hidden_state_cache_gib:
        raise RecipeError(
            "`features.hidden_state_cache_gib` skips layers for cached clips, and processes that"
            " share a host's layers (FSDP) must go in step; set it to 0."
        )
    if recipe.scores_whole_options:
        raise RecipeError(
            f"`answer: likelihood` with `likelihood: {recipe.likelihood}` runs a forward for each"
            " length of prompts in a batch, and processes that share a host's layers (FSDP) must"
            " go in step; score the first token, or single words."
        )
    if recipe.answer == "text" and not training:
        raise RecipeError(
            "Texts of different lengths take different numbers of forwards, and processes that"
            " share a host's layers (FSDP) must go in step: evaluate `answer: text` without FSDP."
        )
    if not training:
        return
    # A frozen host has a backward only for what is trained in it. LoRA always is; a residual only
    # where it is written, which depends on each process's own samples.
    only_residuals = any("lora" not in stage.train for stage in recipe.training.stages)
    if recipe.injection.empty == "none" and only_residuals:
        raise RecipeError(
            "`injection.empty: none` skips the backward where signals are empty, and processes"
            " that share a host's layers (FSDP) must go in step; let empty signals have a residual,"
            " or train lora in every stage."
        )


def _refuse_batch_by_clip(section: str) -> None:
    raise RecipeError(
        f"`{section}.batch_by: clip` runs one forward for each clip that a batch shares, and"
        " processes that share a host's layers (FSDP) must go in step; set it to any."
    )


@contextmanager
def in_step(processes: ProcessGroup) -> Iterator[None]:
    """Raise :class:`DataError` when a forward of a sharded host in this block runs out of memory.

    Retrying in halves is impossible: the other processes are in the middle of the same forward.
    """
    try:
        with warnings.catch_warnings():
            # Outputs of hooked layers are views, but harmless ones: the hook adds out of place, and
            # hosts only read them.
            warnings.filterwarnings(
                "ignore", message="FSDP2-wrapped module .* returned a view tensor"
            )
            yield
    except RuntimeError as error:
        if not (processes.shards and is_out_of_memory(error)):
            raise
        raise DataError(
            f"A forward does not fit into memory ({first_line(error)}). Processes that share a"
            " host's layers (FSDP) do not try again in halves: lower batch_size, or the frame cap."
        ) from error
