"""Interleaved timing: pairs, the median of their ratio, its interval, and the machine."""

import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Cost:
    """Seconds of a call: processor time of all threads of this process, and wall time."""

    cpu: float
    wall: float


def cost(call: Call) -> Cost:
    """Time one call; on a GPU, until it has finished."""
    cpu = time.process_time()
    wall = time.perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return Cost(time.process_time() - cpu, time.perf_counter() - wall)


def interleaved(calls: Sequence[Call], repeats: int, warm: int = 1) -> list[list[Cost]]:
    """Time ``calls`` in turns, ``repeats`` times, each time starting with another one."""
    for call in list(calls) * warm:
        call()
    costs: list[list[Cost]] = [[] for _ in calls]
    for repeat in range(repeats):
        for index in range(len(calls)):
            which = (repeat + index) % len(calls)
            costs[which].append(cost(calls[which]))
    return costs


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, Any]:
    """Return the median of the pairs' ratios and its 95 % bootstrap interval."""
    values = np.array(over) / np.array(under)
    rng = np.random.default_rng(0)
    medians = np.median(values[rng.integers(0, len(values), (4000, len(values)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return {
        "median": float(np.median(values)),
        "low": float(low),
        "high": float(high),
        "pairs": len(values),
    }


def compared(over: Sequence[Cost], under: Sequence[Cost]) -> dict[str, Any]:
    """Return the ratio of two calls' costs, and their median seconds.

    Uses processor time, or wall time on a GPU.
    """
    by = "wall" if torch.cuda.is_initialized() else "cpu"
    found = ratio([getattr(cost, by) for cost in over], [getattr(cost, by) for cost in under])
    seconds = [statistics.median(getattr(cost, by) for cost in costs) for costs in (over, under)]
    return {
        **found,
        "seconds": seconds,
        "wall": ratio([cost.wall for cost in over], [cost.wall for cost in under]),
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on beside the code. No names of machines."""
    model = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
            model,
        )
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    packages = {name: version(name) for name in ("torch", "transformers", "numpy", "av")}
    return {
        "cpu": f"{model}, {os.cpu_count()} cores, {ram:.0f} GiB",
        "gpu": gpu,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **packages,
        "date": datetime.date.today().isoformat(),
    }


def peak() -> float:
    """Return the peak memory of this process, MiB; that of the GPU if there is one."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident() -> float:
    """Return the current memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def started(*command: str) -> Cost:
    """Return the cost of a modulate command from start to end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "modulate", *command], check=True, capture_output=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)
