"""What a run takes, as a report tells it: memory beside a GPU's, operations, features on disk,
hours.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from modulate.checks.cost_model import Budget, Example, budget, meta_recipe
from modulate.checks.findings import CheckReport
from modulate.checks.meta_tensors import META
from modulate.checks.settings import optimizer_steps
from modulate.config.recipe import Recipe
from modulate.data.clip_shards import required_clips
from modulate.data.feature_cache import DTYPES
from modulate.errors import ModulateError
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import Sample
from modulate.utils.atomic_files import format_bytes

A100 = 80 * 2**30
"""Bytes of the GPU that estimates are compared with where there is none."""

A100_FLOPS = 312e12
UTILIZATION = 0.4
"""Share of the A100's dense bfloat16 rate that a run is taken to reach, when its length is guessed
at.
"""


def estimate(
    recipe: Recipe,
    cache: Path,
    training: Example,
    evaluation: Example,
    device: str,
    trust_remote_code: bool = False,
) -> Budget:
    """Return what a recipe takes for clips like these on a ``device`` of type "cuda" or "cpu".

    Raises :class:`ModulateError` where it cannot be built.
    """
    with META:
        pipeline = Pipeline(meta_recipe(recipe), cache, trust_remote_code=trust_remote_code)
    return budget(pipeline, pipeline.fresh_modulation(), training, evaluation, device)


def tell_costs(
    report: CheckReport,
    recipe: Recipe,
    pipeline: Pipeline,
    cache: Path,
    samples: Mapping[str, Sequence[Sample]],
    training: Example,
    evaluation: Example,
) -> None:
    """Add what a run takes, of clips like these: memory and operations by phase, features on disk,
    hours.
    """
    asked = str(recipe.host.params.get("device", "auto")).partition(":")[0]
    device = (
        pipeline.device.type if pipeline.device != META else ("cpu" if asked == "cpu" else "cuda")
    )
    try:
        trust = bool(
            recipe.host.params.get("trust_remote_code")
        )  # refused before, unless the user allowed it
        found = estimate(recipe, cache, training, evaluation, device, trust)
    except (
        ModulateError,
        NotImplementedError,
        RuntimeError,
    ) as error:  # an operation without a meta kernel, in a host or plugin that we do not know
        report.add(
            "info",
            f"Memory and operations were not estimated: {type(error).__name__}:"
            f" {str(error).splitlines()[0]}",
        )
        return
    report.weights = found.weights
    report.memory = {phase.name: phase.peak for phase in found.phases}
    report.flops = {phase.name: phase.flops for phase in found.phases}
    parts = ", ".join(f"{name} {mib(n)}" for name, n in found.weights.items())
    report.figures["memory, about"] = "\n".join(
        [
            f"{mib(sum(found.weights.values()))} weights: {parts}",
            *(f"{mib(p.peak)} {p.name}, at most" for p in found.phases),
        ]
    )
    per = {"features": "a clip", "evaluation": "a sample"}
    settings = recipe.training
    step = (
        "an optimizer step"
        if settings.batch_by != "clip"
        else (
            f"{settings.batch_size * settings.accumulation} samples, each with its own pass over"
            " the clip"
        )
    )
    report.figures["operations"] = "\n".join(
        f"{n / 1e12:,.3g} TFLOP {name}, {per.get(name, step)}" for name, n in report.flops.items()
    )
    uncounted = sorted(set().union(*(phase.uncounted for phase in found.phases)))
    if uncounted:
        report.add(
            "info",
            f"Operations are more than said: this torch's {', '.join(uncounted)} could not be"
            " counted.",
        )
    report.add(
        "info",
        f"Memory is that of tensors on a {'GPU' if device == 'cuda' else 'CPU'}, of clips like the"
        " largest, weights included: gradients, AdamW's two moments and what the backward needs of"
        " the widest moment of every phase. The libraries' own (about 1 GiB on a GPU) and"
        " fragmentation come on top.",
    )
    if recipe.training.gradient_checkpointing:
        report.add(
            "info",
            "The memory of the stages was estimated without training.gradient_checkpointing, which"
            " lowers it: an upper bound; `modulate bench` measures it.",
        )
    if recipe.training.precision != "no":
        report.add(
            "info",
            f"The memory of training.precision {recipe.training.precision!r} is not known"
            " beforehand: it was estimated without.",
        )
    _fits(report, found)
    _cache(report, recipe, pipeline, samples, found, evaluation)
    if device == "cuda" and samples:
        _hours(report, recipe, samples, found)


def _fits(report: CheckReport, found: Budget) -> None:
    if found.device != "cuda":
        return
    real = torch.cuda.is_available()
    limit, name = (
        (torch.cuda.mem_get_info()[1], torch.cuda.get_device_name())
        if real
        else (A100, "an A100-80GB")
    )
    share = found.peak / limit
    if share > 0.9:
        report.add(
            "error" if share > 1 else "warning",
            f"The run needs about {format_bytes(found.peak)} at most, {name} has {format_bytes(limit)}: take smaller"
            " batches, fewer frames or pixels.",
        )
    else:
        report.figures["fits"] = f"{name} ({format_bytes(limit)}): {format_bytes(found.peak)} at most"


def _cache(
    report: CheckReport,
    recipe: Recipe,
    pipeline: Pipeline,
    samples: Mapping[str, Sequence[Sample]],
    found: Budget,
    example: Example,
) -> None:
    """Add the size of all features: of every clip that `modulate features` would compute, taken to
    be as large as the largest.
    """
    a_frame = (
        math.prod(found.feature_shape) * DTYPES[recipe.features.dtype].itemsize / len(example.times)
    )
    report.figures["features of a clip"] = (
        f"{format_bytes(round(a_frame * len(example.times)))} as {recipe.features.dtype}"
    )
    clips = required_clips(pipeline.extractor, samples)
    if not clips:
        return
    report.cache = round(a_frame * sum(len(clip.times) * (1 + clip.gray) for clip in clips))
    report.figures["features of all clips"] = f"{format_bytes(report.cache)} on disk, of {len(clips)} clips"
    if report.cache > recipe.features.disk_gib * 2**30:
        report.add(
            "warning",
            f"All features take {format_bytes(report.cache)}, features.disk_gib keeps"
            f" {format_bytes(int(recipe.features.disk_gib * 2**30))}: some are computed again in every"
            " epoch.",
        )


def _hours(
    report: CheckReport, recipe: Recipe, samples: Mapping[str, Sequence[Sample]], found: Budget
) -> None:
    full = math.ceil(
        len(samples.get("train", [])) / recipe.training.batch_size
    )  # the operations of a step are those of full batches
    steps = optimizer_steps(recipe, full) if full else []
    work = sum(
        n * phase.flops for n, phase in zip(steps, found.stages, strict=False)
    ) + found.features.flops * sum(map(len, samples.values()))
    work += (
        found.evaluation.flops
        * len(samples.get("test", []))
        * (1 + len(recipe.evaluation.conditions) + len(recipe.evaluation.inputs))
    )
    hours = work / (A100_FLOPS * UTILIZATION) / 3600
    report.figures["time, roughly"] = (
        f"{hours:,.0f} h on an A100 at {UTILIZATION:.0%} of its {A100_FLOPS / 1e12:.0f} TFLOP/s, no"
        " stage stopped early; `modulate bench` measures"
    )


def mib(n: int) -> str:
    """Return bytes as text."""
    return f"{n / 2**20:,.0f} MiB"
