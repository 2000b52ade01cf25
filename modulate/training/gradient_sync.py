"""Gradients and counts of one optimizer step, summed once over all processes.

DistributedDataParallel sums inside each backward pass, so every process must run the same number of
them. Here a process may have no samples left, split a batch because memory is short, or meet a
signal without a gradient. Summing once a step keeps the result exact: the gradient of the mean over
all samples, however they are divided.
"""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from modulate.distributed.process_group import ProcessGroup
from modulate.training.data_loader import FailedSamples
from modulate.training.loss import StepStats


def reduce_step(
    processes: ProcessGroup,
    accelerator: Accelerator,
    stats: StepStats,
    failures: FailedSamples,
    parameters: Sequence[nn.Parameter],
) -> StepStats:
    """Leave the whole step's gradients on ``parameters`` of every process; return its totals.

    Samples that failed in one process are recorded in all. Raises :class:`DataError` if they are
    too many.
    """
    if processes.size == 1:
        return stats
    _create_loss_scale(accelerator, parameters[0].device)
    flat = _flat_gradients(parameters, stats.n)
    own = {
        "stats": vars(stats),
        "has_gradient": [parameter.grad is not None for parameter in parameters],
        "failed": failures.of_this_step(),
    }
    gathered = processes.all_gather(own)
    failures.merge_step(found["failed"] for found in gathered)
    total = StepStats()
    for found in gathered:
        total.add(StepStats(**found["stats"]))
    if total.n:
        processes.all_reduce_sum(flat)
        flags = zip(*(found["has_gradient"] for found in gathered), strict=True)
        _set_gradients(parameters, flat.div_(total.n), [any(flag) for flag in flags])
    return total


def _create_loss_scale(accelerator: Accelerator, device: torch.device) -> None:
    """Let fp16's scaler create its scale, which it does at the first loss that it is given.

    This process may have had no samples, and hence no loss.
    """
    if accelerator.scaler is not None:
        accelerator.scaler.scale(torch.zeros(1, device=device))


def _flat_gradients(parameters: Sequence[nn.Parameter], n: int) -> Tensor:
    """Return all gradients as one vector, 0 where there is none.

    Each is that of a mean over ``n`` samples. Multiplied by ``n``, they add up over processes.
    """
    return torch.cat(
        [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() * n for p in parameters]
    )


def _set_gradients(
    parameters: Sequence[nn.Parameter], flat: Tensor, has_gradient: Sequence[bool]
) -> None:
    """Set gradients from one vector. Without one in any process, AdamW must leave a parameter."""
    parts = flat.split([parameter.numel() for parameter in parameters])
    for parameter, part, has in zip(parameters, parts, has_gradient, strict=True):
        parameter.grad = part.view_as(parameter) if has else None
