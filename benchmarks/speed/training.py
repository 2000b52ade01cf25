"""Figures of training: a step, a whole run, peak memory, each beside the released way."""

import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed import fixtures
from benchmarks.speed.bench import Bench, with_random_writers
from benchmarks.speed.caching import GIB
from benchmarks.speed.timing import (
    Cost,
    compared,
    cost,
    interleaved,
    peak,
    ratio,
    resident,
)
from modulate import Modulation
from modulate.inference.batching import LAST_LOGITS
from modulate.inference.pipeline import Pipeline
from modulate.runs.run import Run
from modulate.training.loss import smoothed_cross_entropy
from modulate.training.trainer import train
from modulate.training.training_log import Progress


def step(bench: Bench) -> dict[str, Any]:
    """Compare a stage-1 step (condition, forward, backward, AdamW) with its floor.

    The floor is the host's forward, and its backward down to the first injected layer.
    """
    pipeline = bench.pipeline
    modulation = with_random_writers(bench.pipeline.fresh_modulation())
    batch = pipeline.collate([bench.prepared])
    optimizer = torch.optim.AdamW(modulation.parameters(), lr=1e-5)

    def loss(output: Any) -> Tensor:
        return smoothed_cross_entropy(batch.option_logits(output), batch.answers, 0.0)

    def ours() -> None:
        with modulation.attached(pipeline.model) as attachment:
            with attachment.condition(bench.rows):
                output = pipeline.model(**batch.inputs, **LAST_LOGITS)
            loss(output).backward()
        optimizer.step()
        optimizer.zero_grad()

    def floor() -> None:
        layer = pipeline.host.layers[fixtures.INJECTED[0]]
        handle = layer.register_forward_hook(
            lambda module, args, out: out.detach().requires_grad_()
        )
        try:
            loss(pipeline.model(**batch.inputs, **LAST_LOGITS)).backward()
        finally:
            handle.remove()

    above, below = interleaved([ours, floor], bench.repeats)
    below_it, above_it = saved_for_backward(pipeline, modulation, batch.inputs, bench.rows)
    note = (
        f"kept for backward below the first injected layer: {below_it} bytes, above:"
        f" {above_it / 2**20:.0f} MiB"
    )
    return {"step": {**compared(above, below), "note": note}}


def saved_for_backward(
    pipeline: Pipeline, modulation: Modulation, inputs: dict[str, Tensor], rows: Any
) -> tuple[int, int]:
    """Return the bytes that autograd saves below and above the first injected layer's write.

    The forward is conditioned; the part below includes the vision tower.
    """
    part = [1]
    sizes = [0, 0]

    def pack(tensor: Tensor) -> Tensor:
        sizes[part[0]] += tensor.nbytes
        return tensor

    def enter(number: int) -> Any:
        def hook(*args: Any) -> None:
            part[0] = number

        return hook

    first = pipeline.host.layers[modulation.config.injection.layers[0]]
    with modulation.attached(pipeline.model) as attachment, attachment.condition(rows):
        handles = [
            pipeline.host.entry.register_forward_pre_hook(enter(0)),
            first.register_forward_hook(enter(1), prepend=True),
        ]
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                pipeline.model(**inputs, **LAST_LOGITS)
        finally:
            for handle in handles:
                handle.remove()
    return sizes[0], sizes[1]


def training(bench: Bench) -> dict[str, Any]:
    """Two epochs of `modulate train` on the bench's files; after each of its steps, one sample the
    released way, in the same process.
    """
    stages = [{"name": "modulator", "train": ["modulator"], "epochs": 2}]
    settings = {
        "stages": stages,
        "batch_size": len(fixtures.TASKS),
        "augment": False,
        "validate_every": None,
        "warmup_steps": 0,
        "batch_by": "clip",
        "prefetch_batches": 0,
    }
    pipeline = bench.pipeline_for(
        "training", training=settings, features={"hidden_state_cache_gib": GIB}
    )
    samples = pipeline.samples("train")
    naive = bench.naive(with_random_writers(pipeline.fresh_modulation()))
    ours: list[Cost] = []
    theirs: list[Cost] = []
    clock: list[Any] = []

    def lap() -> None:
        now = time.process_time(), time.perf_counter()
        if clock:
            ours.append(
                Cost(
                    (now[0] - clock[0]) / len(fixtures.TASKS),
                    (now[1] - clock[1]) / len(fixtures.TASKS),
                )
            )
        clock[:] = now

    def listener(progress: Progress) -> None:
        lap()
        sample = samples[len(theirs) % len(samples)]
        theirs.append(cost(lambda: naive.step([sample], bench.prompt)))
        clock.clear()
        lap()

    run = Run.create(pipeline.recipe, bench.folder / "runs")
    lap()
    train(run, pipeline, listener, resume=False)
    half = len(ours) // 2
    note = f"{len(fixtures.TASKS)} questions on each clip, `features.hidden_state_cache_gib`"
    first, second = (
        compared(theirs[part], ours[part]) for part in (slice(0, half), slice(half, 2 * half))
    )
    return {"epoch_1": {**first, "note": note}, "epoch_2": {**second, "note": note}}


def memory(bench: Bench) -> dict[str, Any]:
    """Compare peak memory above the loaded weights in a stage-1 step, each in its own process."""
    peaks = []
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")
    }  # with these settings the allocator keeps freed memory, which must not count
    for way in ("ours", "naive"):
        command = [
            sys.executable,
            "-m",
            "benchmarks.speed",
            "--peak",
            way,
            "--folder",
            str(bench.folder),
        ]
        peaks.append(
            [
                float(
                    subprocess.run(
                        command, check=True, capture_output=True, text=True, env=environment
                    ).stdout.split()[-1]
                )
                for _ in range(2)
            ]
        )
    found = ratio(*peaks)
    return {
        "memory": {
            **found,
            "seconds": None,
            "note": (
                f"{statistics.median(peaks[0]):.0f} MiB and {statistics.median(peaks[1]):.0f} MiB"
            ),
        }
    }


def peak_of(way: str, bench: Bench) -> float:
    """Return the peak memory (MiB) of one step above that of the loaded weights.

    ``way`` is "ours" or "naive"; call it in a new process.
    """
    sample = bench.pipeline.samples("train")[0]
    modulation = with_random_writers(bench.pipeline.fresh_modulation())
    if way == "naive":
        naive = bench.naive(modulation)
        bench.pipeline.model = nn.Module()  # only one host is in memory
        before = resident()
        naive.step([sample], bench.prompt)
        return peak() - before
    before = resident()
    pipeline = bench.pipeline
    optimizer = torch.optim.AdamW(modulation.parameters(), lr=1e-5)
    prepared = pipeline.prepare(sample)
    batch = pipeline.collate([prepared])
    with modulation.attached(pipeline.model) as attachment:
        with attachment.condition([prepared.clip_inputs()]):
            output = pipeline.model(**batch.inputs, **LAST_LOGITS)
        smoothed_cross_entropy(batch.option_logits(output), batch.answers, 0.0).backward()
    optimizer.step()
    return peak() - before
