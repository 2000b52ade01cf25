"""The rows of the table: each measures one promise and returns its figures."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.naive import Resampler
from benchmarks.speed import world
from benchmarks.speed.adapters import lora
from benchmarks.speed.bench import Bench, awake
from benchmarks.speed.inference import forward, generate
from benchmarks.speed.timing import (
    Cost,
    compared,
    cost,
    interleaved,
    peak,
    ratio,
    resident,
    started,
)
from modulate import ClipInput, Injection, Modulation, visual_grid
from modulate.evaluation.evaluate import score
from modulate.hosts.hidden_state_cache import HiddenStateCache
from modulate.hosts.vision_tower_cache import ContentKeys, VisionTowerCache
from modulate.inference.batching import LAST_LOGITS, Batcher, batches_by_clip
from modulate.inference.pipeline import Pipeline
from modulate.inference.shared_prefix import shared_prefix, shared_prefix_forward
from modulate.interfaces.params import ComponentSpec
from modulate.modulation.attachment import ModulatedHost
from modulate.runs.run import Run
from modulate.training.optimizer import smoothed_cross_entropy
from modulate.training.trainer import Progress, train
from modulate_gaze.scanpath import Scanpath

GIB = 1.0


# --- training


def step(bench: Bench) -> dict[str, Any]:
    """One stage-1 step (condition, forward, backward, AdamW) and its floor: the host's forward, and
    backward down to the first injected layer.
    """
    pipeline = bench.pipeline
    modulation = awake(bench.pipeline.fresh_modulation())
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
        layer = pipeline.host.layers[world.INJECTED[0]]
        handle = layer.register_forward_hook(
            lambda module, args, out: out.detach().requires_grad_()
        )
        try:
            loss(pipeline.model(**batch.inputs, **LAST_LOGITS)).backward()
        finally:
            handle.remove()

    above, below = interleaved([ours, floor], bench.repeats)
    below_it, above_it = kept_for_backward(pipeline, modulation, batch.inputs, bench.rows)
    note = (
        f"kept for backward below the first injected layer: {below_it} bytes, above:"
        f" {above_it / 2**20:.0f} MiB"
    )
    return {"step": {**compared(above, below), "note": note}}


def kept_for_backward(
    pipeline: Pipeline, modulation: Modulation, inputs: dict[str, Tensor], rows: Any
) -> tuple[int, int]:
    """Return the bytes that autograd keeps in a conditioned training forward: below the first
    injected layer's write, vision tower included, and above.
    """
    part = [1]
    found = [0, 0]

    def pack(tensor: Tensor) -> Tensor:
        found[part[0]] += tensor.nbytes
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
    return found[0], found[1]


def training(bench: Bench) -> dict[str, Any]:
    """Two epochs of `modulate train` on the bench's files; after each of its steps, one sample the
    released way, in the same process.
    """
    stages = [{"name": "modulator", "train": ["modulator"], "epochs": 2}]
    settings = {
        "stages": stages,
        "batch_size": len(world.TASKS),
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
    naive = bench.naive(awake(pipeline.fresh_modulation()))
    ours: list[Cost] = []
    theirs: list[Cost] = []
    clock: list[Any] = []

    def lap() -> None:
        now = time.process_time(), time.perf_counter()
        if clock:
            ours.append(
                Cost((now[0] - clock[0]) / len(world.TASKS), (now[1] - clock[1]) / len(world.TASKS))
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
    note = f"{len(world.TASKS)} questions on each clip, `features.hidden_state_cache_gib`"
    first, second = (
        compared(theirs[part], ours[part]) for part in (slice(0, half), slice(half, 2 * half))
    )
    return {"epoch_1": {**first, "note": note}, "epoch_2": {**second, "note": note}}


CONDITIONS = ("signal", "none", "blank")
KEPT: dict[str, tuple[float, float, str]] = {
    "tower": (GIB, 0.0, "any"),
    "states": (0.0, GIB, "any"),
    "together": (0.0, 0.0, "clip"),
    "together, tower": (GIB, 0.0, "clip"),
    "together, states": (0.0, GIB, "clip"),
}
"""What is kept (vision_tower_cache_gib, hidden_state_cache_gib) and shared in an evaluation, by
name.
"""


def keeping(bench: Bench, folder: Path, tower: float, states: float, together: str) -> Pipeline:
    """Return the bench's pipeline with empty stores, and scoring as told."""
    other = copy(bench.pipeline)
    recipe = bench.pipeline.recipe
    contents = ContentKeys(bool(tower or states))
    other.recipe = recipe.model_copy(
        update={
            "evaluation": recipe.evaluation.model_copy(
                update={"batch_by": together, "batch_size": len(world.TASKS)}
            )
        }
    )
    other.batcher = Batcher(other.host, other.processor, other.device, contents)
    other.vision_tower_cache = VisionTowerCache(
        other.host, folder, int(tower * 2**30), "clip", contents
    )
    other.hidden_state_cache = HiddenStateCache(
        other.host, world.INJECTED[0], int(states * 2**30), contents
    )
    return other


def scoring(bench: Bench) -> dict[str, Any]:
    """Four questions on one clip scored under three conditions: as ever, and with what may be kept
    and shared, the stores empty at the start.
    """
    samples = batches_by_clip(bench.pipeline.samples("train"), len(world.TASKS))[0]

    def way(*settings: Any) -> Callable[[], None]:
        def call() -> None:
            with TemporaryDirectory() as folder:
                pipeline = keeping(bench, Path(folder), *settings)
                with (
                    bench.modulation.attached(pipeline.model) as attachment,
                    pipeline.host_caches(),
                ):
                    for condition in CONDITIONS:
                        score(pipeline, attachment, samples, condition)

        return call

    plain, *kept = interleaved(
        [way(0.0, 0.0, "any"), *(way(*settings) for settings in KEPT.values())], bench.repeats
    )
    note = f"{len(samples)} questions on one clip, under {len(CONDITIONS)} conditions"
    return {
        f"scoring {name}": {**compared(plain, costs), "note": note}
        for name, costs in zip(KEPT, kept, strict=True)
    }


def later(bench: Bench) -> dict[str, Any]:
    """A stage-1 step on four questions on one clip that was seen before: with nothing kept of the
    host, and with what may be.
    """
    modulation = awake(bench.pipeline.fresh_modulation())
    prepared = [
        bench.pipeline.prepare(s)
        for s in batches_by_clip(bench.pipeline.samples("train"), len(world.TASKS))[0]
    ]
    optimizer = torch.optim.AdamW(modulation.parameters(), lr=1e-5)
    clips = [prepared[0].clip(prepared[0].signal)]

    def way(folder: Path, *settings: Any) -> Callable[[], None]:
        pipeline = keeping(bench, folder, *settings, "clip")

        def call() -> None:
            host = ModulatedHost(modulation, pipeline.model)
            try:
                with pipeline.host_caches():
                    batch = pipeline.collate(prepared, with_inputs=False)
                    common = shared_prefix(prepared, list(pipeline.host.visual_ids.values()))
                    output = shared_prefix_forward(host, pipeline.model, prepared, clips, common)
                    smoothed_cross_entropy(
                        batch.option_logits(output), batch.answers, 0.0
                    ).backward()
            finally:
                host.attachment.detach()
            optimizer.step()
            optimizer.zero_grad()

        return call

    with TemporaryDirectory() as folder:
        plain, tower, states = interleaved(
            [way(Path(folder), 0.0, 0.0), way(Path(folder), GIB, 0.0), way(Path(folder), 0.0, GIB)],
            bench.repeats,
        )
    return {"later tower": compared(plain, tower), "later states": compared(plain, states)}


def memory(bench: Bench) -> dict[str, Any]:
    """Peak memory above the loaded weights in one stage-1 step, each way in a process of its own."""
    peaks = []
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")
    }  # memory that is free must not count
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
    """Return the peak memory (MiB) of one step the one ``way`` or the other, above that of the
    loaded weights. In a process of its own.
    """
    sample = bench.pipeline.samples("train")[0]
    modulation = awake(bench.pipeline.fresh_modulation())
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
        with attachment.condition([[prepared.clip(prepared.signal)]]):
            output = pipeline.model(**batch.inputs, **LAST_LOGITS)
        smoothed_cross_entropy(batch.option_logits(output), batch.answers, 0.0).backward()
    optimizer.step()
    return peak() - before


def resampler(bench: Bench) -> dict[str, Any]:
    """One clip for 4 layers, 16 steps of 24 × 24 tokens, before the output projection: all at once,
    and one call per layer and step.
    """
    grid = visual_grid([float(t) for t in range(32)], 2, 24, 24)
    values = torch.randn(
        grid.steps, grid.tokens_per_step, 768, generator=torch.Generator().manual_seed(0)
    )
    modulation = awake(
        Modulation.for_host(
            bench.pipeline.model,
            encoder=ComponentSpec(name="coord_pe", params={"dim": 256}),
            modulator=ComponentSpec(name="gaze_resampler"),
            injection=Injection(layers=world.INJECTED),
            d_features=768,
        )
    )
    clip = ClipInput(Scanpath([[0.3, 0.4, t, 0.9] for t in range(32)]), grid, values)
    single = [Resampler(dict(modulation.state_dict()), k, 2) for k in range(4)]
    code = modulation.encoder([clip.signal], [grid]).values[:, 0]

    @torch.inference_mode()
    def ours() -> None:
        modulation.latents([clip])

    @torch.inference_mode()
    def theirs() -> None:
        for one in single:
            torch.cat([one.read(values[t], code[t]) for t in range(grid.steps)])

    slow, fast = interleaved([theirs, ours], 2 * bench.repeats)
    return {"resampler": compared(slow, fast)}


def start(bench: Bench) -> dict[str, Any]:
    """Seconds until a command that needs no torch has printed."""
    found = {}
    for command in (("--help",), ("ls",), ("plugins",)):
        started(*command)
        times = [started(*command) for _ in range(2 * bench.repeats)]
        note = f"by the clock {statistics.median(t.wall for t in times):.2f} s"
        found[f"start {command[0]}"] = {
            **ratio([t.cpu for t in times], [1.0] * len(times)),
            "seconds": None,
            "note": note,
        }
    return found


def large(bench: Bench) -> dict[str, Any]:
    """A conditioned forward at the shapes of Qwen2.5-VL-7B, bfloat16, random weights; needs a GPU."""
    if not torch.cuda.is_available():
        return {}
    from transformers import Qwen2_5_VLForConditionalGeneration

    config = world.configuration(layers=28, width=3584, vocabulary=152064)
    for part, sizes in (
        (
            config.text_config,
            {"intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4},
        ),
        (
            config.vision_config,
            {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
        ),
    ):
        for name, value in sizes.items():
            setattr(part, name, value)
    config.text_config.rope_parameters["mrope_section"] = [16, 24, 24]
    with torch.device("cuda"):
        model = (
            Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
            .eval()
            .requires_grad_(False)
        )
    modulation = awake(
        Modulation.for_host(
            model,
            encoder=ComponentSpec(name="coord_pe", params={"dim": 256}),
            modulator=ComponentSpec(name="gaze_resampler"),
            injection=Injection(layers=(6, 13, 20, 26)),
            d_features=768,
        )
    ).cuda()
    prepared = bench.prepared
    inputs = {k: v.cuda() for k, v in bench.inputs.items()}
    features = torch.randn(prepared.grid.steps, prepared.grid.tokens_per_step, 768, device="cuda")
    rows = [[ClipInput(prepared.signal, prepared.grid, features)]]

    @torch.inference_mode()
    def bare() -> None:
        model(**inputs, **LAST_LOGITS)

    @torch.inference_mode()
    def conditioned() -> None:
        with modulation.attached(model) as attachment, attachment.condition(rows):
            model(**inputs, **LAST_LOGITS)

    full, plain = interleaved([conditioned, bare], 10 * bench.repeats, warm=3)
    return {"gpu conditioned": compared(full, plain)}


ROWS: tuple[Callable[[Bench], dict[str, Any]], ...] = (
    start,
    resampler,
    forward,
    generate,
    lora,
    step,
    memory,
    training,
    scoring,
    later,
    large,
)
"""In the order in which they are measured."""
