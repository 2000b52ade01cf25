"""Out of memory: how it is recognized, and how what can be given back is."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch raised ``error`` because an accelerator's or the machine's memory is
    full.
    """
    return isinstance(
        error, torch.OutOfMemoryError
    ) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def free_cached_memory() -> None:
    """Return to the device what torch keeps of it for later.

    Only once nothing refers to the failed attempt any more: leave its ``except`` first.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """Return the first sentence of torch's message, which goes on with pages of statistics."""
    return str(error).partition("\n")[0].partition(". ")[0]
