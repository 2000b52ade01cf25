"""Recognize out-of-memory errors of torch, and free its cached memory."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch raised ``error`` because the memory of GPU or CPU is full."""
    # On a CPU torch raises a plain RuntimeError, known only by its text.
    on_cpu = "DefaultCPUAllocator: can't allocate memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError) or on_cpu


def free_cached_memory() -> None:
    """Return cached but unused GPU memory to the device.

    Call it after the ``except`` block of the failed attempt: inside, the traceback still refers to
    its tensors.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """Return the first sentence of torch's message, without the pages of statistics after it."""
    return str(error).partition("\n")[0].partition(". ")[0]
