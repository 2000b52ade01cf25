"""All measurements, in their order; each function returns rows of the table."""

import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.naive import Resampler
from benchmarks.speed import fixtures
from benchmarks.speed.adapters import lora
from benchmarks.speed.bench import Bench, with_random_writers
from benchmarks.speed.caching import later, scoring
from benchmarks.speed.inference import forward, generate
from benchmarks.speed.timing import (
    compared,
    interleaved,
    ratio,
    started,
)
from benchmarks.speed.training import memory, step, training
from modulate import ClipInput, Injection, Modulation, visual_grid
from modulate.inference.batching import LAST_LOGITS
from modulate.interfaces.params import ComponentSpec
from modulate_gaze.scanpath import Scanpath


def resampler(bench: Bench) -> dict[str, Any]:
    """Compare the resampler in one call with one call per layer and step.

    One clip, 4 layers, 16 steps of 24 × 24 tokens, before the output projection.
    """
    grid = visual_grid([float(t) for t in range(32)], 2, 24, 24)
    values = torch.randn(
        grid.steps, grid.tokens_per_step, 768, generator=torch.Generator().manual_seed(0)
    )
    modulation = with_random_writers(
        Modulation.for_host(
            bench.pipeline.model,
            encoder=ComponentSpec(name="coord_pe", params={"dim": 256}),
            modulator=ComponentSpec(name="gaze_resampler"),
            injection=Injection(layers=fixtures.INJECTED),
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
        for resampler in single:
            torch.cat([resampler.read(values[t], code[t]) for t in range(grid.steps)])

    slow, fast = interleaved([theirs, ours], 2 * bench.repeats)
    return {"resampler": compared(slow, fast)}


def start(bench: Bench) -> dict[str, Any]:
    """Measure the seconds until a command that needs no torch has printed."""
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
    """Measure a conditioned forward at 7B shapes: bfloat16, random weights, needs a GPU."""
    if not torch.cuda.is_available():
        return {}
    from transformers import Qwen2_5_VLForConditionalGeneration

    config = fixtures.configuration(layers=28, width=3584, vocabulary=152064)
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
    modulation = with_random_writers(
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
    (clip,) = prepared.clips
    features = torch.randn(clip.grid.steps, clip.grid.tokens_per_step, 768, device="cuda")
    rows = [[ClipInput(clip.signal, clip.grid, features)]]

    @torch.inference_mode()
    def bare() -> None:
        model(**inputs, **LAST_LOGITS)

    @torch.inference_mode()
    def conditioned() -> None:
        with modulation.attached(model) as attachment, attachment.condition(rows):
            model(**inputs, **LAST_LOGITS)

    full, plain = interleaved([conditioned, bare], 10 * bench.repeats, warm=3)
    return {"gpu conditioned": compared(full, plain)}


MEASUREMENTS: tuple[Callable[[Bench], dict[str, Any]], ...] = (
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
