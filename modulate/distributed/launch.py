"""How this process was started: alone, or as one of several by torchrun, accelerate or MPI."""

import os
from datetime import timedelta
from typing import Any

from modulate.distributed.process_group import TIMEOUT, ProcessGroup
from modulate.errors import RecipeError

_LAUNCHED = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables in which torchrun, accelerate and MPI's launchers give the number of processes."""

_alone = ProcessGroup()
_joined: ProcessGroup | None = None


def current() -> ProcessGroup:
    """Return this process's group; a process that was launched with others joins them first."""
    return _joined or (join() if launched() else _alone)


def join(device: str = "auto") -> ProcessGroup:
    """Join the processes that this one was launched with, and return the group.

    ``device``: auto (CUDA if present, else the CPU), cuda, or cpu. On CUDA each process uses the
    device of its LOCAL_RANK and nccl, on the CPU gloo. Joining again returns the same group.

    Raises :class:`RecipeError` for a numbered device, which all processes would share; without
    MASTER_ADDR; and when accelerate was asked for several processes but started one.
    """
    global _joined
    if _joined is not None:
        return _joined
    if not launched():
        _refuse_lone_launch()
        return _alone
    if ":" in device:
        raise RecipeError(
            f"host.params.device is {device!r}, which all processes of this run would share; leave"
            " it at auto, and each process takes a device of its own."
        )
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.cuda.is_available()
    shards, reshard = _sharding()
    if "RANK" in os.environ and "MASTER_ADDR" not in os.environ:
        raise RecipeError(
            "RANK and WORLD_SIZE are set, as by a launcher, but MASTER_ADDR is not: start with"
            " torchrun or accelerate launch, or unset both for a single process."
        )
    state = PartialState(cpu=cpu, timeout=timedelta(seconds=TIMEOUT))
    store: Any = dist.PrefixStore("modulate", dist.distributed_c10d._get_default_store())
    first = state.local_process_index == 0
    kind = state.device.type
    _joined = ProcessGroup(
        state.process_index,
        state.num_processes,
        store,
        is_local_main_process=first,
        device=kind,
        shards=shards,
        reshard=reshard,
    )
    return _joined


def leave() -> None:
    """Destroy torch's process group at the end of the program; it cannot be joined again."""
    if _joined is not None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def _sharding() -> tuple[bool, bool]:
    """Return whether accelerate's configuration asks for FSDP, and for resharding after forward.

    Removes the request from the environment: with it, accelerate would shard the small trained
    module, and transformers would load weights in one process only. Raises :class:`RecipeError`
    for FSDP1 and for offloaded parameters.
    """
    if os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False, True
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RecipeError(
            "The launch asks for FSDP1, which wraps the host in its own modules; set"
            " fsdp_version: 2 in accelerate's configuration (docs/how-to/accelerate/fsdp2.yaml)."
        )
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise RecipeError(
            "The launch asks for fsdp_offload_params, which is not supported: the frozen layers are"
            " sharded across the devices and stay there."
        )
    return True, os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"


def launched() -> bool:
    """Return whether this process was started as one of several."""
    return any(int(os.environ.get(name) or 1) > 1 for name in _LAUNCHED) and (
        "RANK" in os.environ or "WORLD_SIZE" not in os.environ
    )


def _refuse_lone_launch() -> None:
    """Raise if accelerate was asked for several processes but started one.

    It does so on a CPU without MPI.
    """
    if (
        "ACCELERATE_USE_CPU" in os.environ
        and "MASTER_ADDR" in os.environ
        and "RANK" not in os.environ
    ):
        raise RecipeError(
            "accelerate launch --cpu was asked for several processes but started one, as it does"
            " without MPI. Use `torchrun --nproc-per-node N -m modulate train …`, or `accelerate"
            " launch --multi_gpu --num_processes N -m modulate train …`, which starts N processes"
            " on a CPU too."
        )
