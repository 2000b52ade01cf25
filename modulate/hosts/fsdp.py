"""A frozen host whose decoder layers are divided among the processes of a run (FSDP2): each holds a
part of every layer, and all put a layer together when it runs.

Only the host is divided. The modulation, its LoRA and its hooks are whole in every process, and so
is what trains them. The price is that all processes go through the host in step: as many forwards,
and as many backwards, each.
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
from modulate.hosts.host import Host, HostParams, understand
from modulate.utils.out_of_memory import first_line, is_out_of_memory


def load(family: type[Host], params: HostParams) -> tuple[nn.Module, Any]:
    """Return model and processor as ``family`` loads them; of a team that shards, loaded on the
    CPU, and only then brought to its devices in parts.
    """
    processes = current()
    if not processes.shards:
        return family.load(params)
    model, processor = family.load(params.model_copy(update={"device": "cpu"}))
    shard(model, processes)
    return model, processor


def shard(model: nn.Module, processes: ProcessGroup) -> None:
    """Divide the decoder layers of ``model`` among the processes, and bring it to this process's
    device, layer by layer. It stays divided for as long as it lives.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    host = understand(model)
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if processes.device == "cuda"
        else torch.device(processes.device)
    )
    mesh = init_device_mesh(device.type, (processes.size,))
    for layer in host.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=processes.reshard)
    full_tensor = set(host.language.parameters()) - {
        p for layer in host.layers for p in layer.parameters()
    }
    fully_shard(
        host.language, mesh=mesh, reshard_after_forward=False, ignored_params=full_tensor
    )  # keeps the layers' transfers ahead of their use
    model.to(device)


def full_tensor(value: Tensor) -> Tensor:
    """Return a parameter's values, put together from all processes where it is divided: then all
    must ask.
    """
    full = getattr(value, "full_tensor", None)
    found: Tensor = value if full is None else full()
    return found


def refuse_out_of_step(recipe: Recipe, processes: ProcessGroup, training: bool) -> None:
    """Raise :class:`RecipeError` for what would take some processes through a divided host more
    often than others: in evaluation, and in ``training``, which validates.
    """
    if not processes.shards:
        return
    for name, together in (
        ("training", recipe.training.batch_by if training else "any"),
        ("evaluation", recipe.evaluation.batch_by),
    ):
        if together == "clip":
            raise RecipeError(
                f"`{name}.batch_by: clip` takes as many forwards as there are clips in common, and"
                " processes that share a host's layers (FSDP) must go in step; take any."
            )
    if recipe.features.hidden_state_cache_gib:
        raise RecipeError(
            "`features.hidden_state_cache_gib` leaves layers out for clips that are kept, and"
            " processes that share a host's layers (FSDP) must go in step; set it to 0."
        )
    if not training:
        return
    if recipe.injection.empty == "none" and any(
        "lora" not in stage.train for stage in recipe.training.stages
    ):
        raise RecipeError(
            "`injection.empty: none` leaves a backward out where signals are empty, and processes"
            " that share a host's layers (FSDP) must go in step; let empty signals have a residual,"
            " or train lora in every stage."
        )


@contextmanager
def in_step(processes: ProcessGroup) -> Iterator[None]:
    """Make running out of memory final where the host is divided: the others are in the middle of
    the same forward, and cannot do theirs in halves.
    """
    try:
        with warnings.catch_warnings():
            # Ours are: views of what the hook has added to out of place, and hosts read them only.
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
