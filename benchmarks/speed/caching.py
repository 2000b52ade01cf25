"""Figures of caches and of batches by clip: what scoring and later training steps save."""

from collections.abc import Callable
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.speed import fixtures
from benchmarks.speed.bench import Bench, with_random_writers
from benchmarks.speed.timing import (
    compared,
    interleaved,
)
from modulate.evaluation.scoring import score
from modulate.hosts.hidden_state_cache import HiddenStateCache
from modulate.hosts.vision_tower_cache import ContentKeys, VisionTowerCache
from modulate.inference.batching import Batcher, batches_by_clip
from modulate.inference.pipeline import Pipeline
from modulate.inference.shared_prefix import shared_prefix, shared_prefix_forward
from modulate.modulation.attachment import ModulatedHost
from modulate.training.loss import smoothed_cross_entropy

GIB = 1.0
"""Size of a cache that holds everything."""

CONDITIONS = ("signal", "none", "blank")
CACHES: dict[str, tuple[float, float, str]] = {
    "tower": (GIB, 0.0, "any"),
    "states": (0.0, GIB, "any"),
    "together": (0.0, 0.0, "clip"),
    "together, tower": (GIB, 0.0, "clip"),
    "together, states": (0.0, GIB, "clip"),
}
"""{name: (vision_tower_cache_gib, hidden_state_cache_gib, batch_by)} of an evaluation."""


def pipeline_with(
    bench: Bench, folder: Path, tower: float, states: float, batch_by: str
) -> Pipeline:
    """Return the bench's pipeline with empty caches and these settings of scoring."""
    pipeline = copy(bench.pipeline)
    recipe = bench.pipeline.recipe
    contents = ContentKeys(bool(tower or states))
    pipeline.recipe = recipe.model_copy(
        update={
            "evaluation": recipe.evaluation.model_copy(
                update={"batch_by": batch_by, "batch_size": len(fixtures.TASKS)}
            )
        }
    )
    pipeline.batcher = Batcher(pipeline.host, pipeline.processor, pipeline.device, contents)
    pipeline.vision_tower_cache = VisionTowerCache(
        pipeline.host, folder, int(tower * 2**30), "clip", contents
    )
    pipeline.hidden_state_cache = HiddenStateCache(
        pipeline.host, fixtures.INJECTED[0], int(states * 2**30), contents
    )
    return pipeline


def scoring(bench: Bench) -> dict[str, Any]:
    """Score four questions on one clip under three conditions, without and with caches.

    Caches are empty at the start.
    """
    samples = batches_by_clip(bench.pipeline.samples("train"), len(fixtures.TASKS))[0]

    def way(*settings: Any) -> Callable[[], None]:
        def call() -> None:
            with TemporaryDirectory() as folder:
                pipeline = pipeline_with(bench, Path(folder), *settings)
                with (
                    bench.modulation.attached(pipeline.model) as attachment,
                    pipeline.host_caches(),
                ):
                    for condition in CONDITIONS:
                        score(pipeline, attachment, samples, condition)

        return call

    plain, *cached = interleaved(
        [way(0.0, 0.0, "any"), *(way(*settings) for settings in CACHES.values())], bench.repeats
    )
    note = f"{len(samples)} questions on one clip, under {len(CONDITIONS)} conditions"
    return {
        f"scoring {name}": {**compared(plain, costs), "note": note}
        for name, costs in zip(CACHES, cached, strict=True)
    }


def later(bench: Bench) -> dict[str, Any]:
    """Measure a stage-1 step on four questions about a clip of an earlier step, with caches."""
    modulation = with_random_writers(bench.pipeline.fresh_modulation())
    prepared = [
        bench.pipeline.prepare(sample)
        for sample in batches_by_clip(bench.pipeline.samples("train"), len(fixtures.TASKS))[0]
    ]
    optimizer = torch.optim.AdamW(modulation.parameters(), lr=1e-5)
    clips = prepared[0].clip_inputs()

    def way(folder: Path, *settings: Any) -> Callable[[], None]:
        pipeline = pipeline_with(bench, folder, *settings, "clip")

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
