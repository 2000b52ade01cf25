"""Add a run's estimated costs to a report: memory, operations, features on disk, and hours."""

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
from modulate.interfaces.sample import Sample
from modulate.utils.atomic_files import format_bytes

A100 = 80 * 2**30
"""Bytes of the GPU that memory is compared with on a machine without one."""

A100_FLOPS = 312e12
"""Dense bfloat16 rate of an A100, operations per second."""

UTILIZATION = 0.4
"""Share of that rate that a run is assumed to reach."""


def estimate(
    recipe: Recipe,
    cache: Path,
    training: Example,
    evaluation: Example,
    device: str,
    trust_remote_code: bool = False,
) -> Budget:
    """Return the estimated costs of a recipe on clips like these, on a "cuda" or "cpu" ``device``.

    Raises :class:`ModulateError` if host or backbone cannot be built.
    """
    with META:
        pipeline = Pipeline(meta_recipe(recipe), cache, trust_remote_code=trust_remote_code)
    return budget(pipeline, pipeline.fresh_modulation(), training, evaluation, device)


def add_costs(
    report: CheckReport,
    recipe: Recipe,
    pipeline: Pipeline,
    cache: Path,
    samples: Mapping[str, Sequence[Sample]],
    training: Example,
    evaluation: Example,
) -> None:
    """Add the estimated costs of a run on clips like these to ``report``."""
    device = _device(recipe, pipeline)
    # The recipe's value suffices: a user who did not allow remote code was refused before.
    trust = bool(recipe.host.params.get("trust_remote_code"))
    try:
        estimated = estimate(recipe, cache, training, evaluation, device, trust)
    # The last two: an operation without a meta kernel, in an unknown host or plugin.
    except (ModulateError, NotImplementedError, RuntimeError) as error:
        report.add(
            "info",
            f"Memory and operations were not estimated: {type(error).__name__}:"
            f" {str(error).splitlines()[0]}",
        )
        return
    _memory(report, recipe, estimated)
    _operations(report, recipe, estimated)
    _fits(report, estimated)
    _cache(report, recipe, pipeline, samples, estimated, evaluation)
    if device == "cuda" and samples:
        _hours(report, recipe, samples, estimated)


def _device(recipe: Recipe, pipeline: Pipeline) -> str:
    """Return the type of device that the run will use."""
    if pipeline.device != META:
        return pipeline.device.type
    wanted = str(recipe.host.params.get("device", "auto")).partition(":")[0]
    return "cpu" if wanted == "cpu" else "cuda"


def _memory(report: CheckReport, recipe: Recipe, estimated: Budget) -> None:
    report.weights = estimated.weights
    report.memory = {phase.name: phase.peak for phase in estimated.phases}
    parts = ", ".join(f"{name} {format_mib(size)}" for name, size in estimated.weights.items())
    lines = [f"{format_mib(sum(estimated.weights.values()))} weights: {parts}"]
    lines += [f"{format_mib(phase.peak)} {phase.name}, at most" for phase in estimated.phases]
    report.figures["memory, about"] = "\n".join(lines)
    report.add(
        "info",
        f"Memory is that of tensors on a {'GPU' if estimated.device == 'cuda' else 'CPU'} for clips"
        " like the largest. It includes weights, gradients, AdamW's two moments, and what the"
        " backward needs, at the peak of every phase. Add about 1 GiB on a GPU for the libraries,"
        " and fragmentation.",
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
            "The memory of the stages was estimated without training.precision"
            f" {recipe.training.precision!r}, whose effect is not known beforehand.",
        )


def _operations(report: CheckReport, recipe: Recipe, estimated: Budget) -> None:
    report.flops = {phase.name: phase.flops for phase in estimated.phases}
    settings = recipe.training
    step = "an optimizer step"
    # Batches by clip differ in size, so the estimate is for full ones without shared passes.
    if settings.batch_by == "clip":
        count = settings.batch_size * settings.accumulation
        step = f"{count} samples, each with its own pass over the clip"
    units = {"features": "a clip", "evaluation": "a sample"}
    report.figures["operations"] = "\n".join(
        f"{flops / 1e12:,.3g} TFLOP {name}, {units.get(name, step)}"
        for name, flops in report.flops.items()
    )
    uncounted = sorted(set().union(*(phase.uncounted for phase in estimated.phases)))
    if uncounted:
        report.add(
            "info",
            "The true number of operations is higher: those of this torch's"
            f" {', '.join(uncounted)} could not be counted.",
        )


def _fits(report: CheckReport, estimated: Budget) -> None:
    if estimated.device != "cuda":
        return
    limit = A100
    name = "an A100-80GB"
    if torch.cuda.is_available():
        limit = torch.cuda.mem_get_info()[1]
        name = torch.cuda.get_device_name()
    peak = format_bytes(estimated.peak)
    share = estimated.peak / limit
    if share > 0.9:
        report.add(
            "error" if share > 1 else "warning",
            f"The run needs about {peak} at most, {name} has {format_bytes(limit)}: use smaller"
            " batches, fewer frames or fewer pixels.",
        )
    else:
        report.figures["fits"] = f"{name} ({format_bytes(limit)}): {peak} at most"


def _cache(
    report: CheckReport,
    recipe: Recipe,
    pipeline: Pipeline,
    samples: Mapping[str, Sequence[Sample]],
    estimated: Budget,
    example: Example,
) -> None:
    """Add the size of all features that `modulate features` would compute.

    Every frame is assumed to have as many features as one of the largest clip.
    """
    values = math.prod(estimated.feature_shape)
    per_frame = values * DTYPES[recipe.features.dtype].itemsize / len(example.largest.times)
    report.figures["features of a clip"] = (
        f"{format_bytes(round(per_frame * len(example.largest.times)))} as {recipe.features.dtype}"
    )
    clips = required_clips(pipeline.extractor, samples)
    if not clips:
        return
    report.cache = round(per_frame * sum(len(clip.times) * (1 + clip.gray) for clip in clips))
    total = format_bytes(report.cache)
    report.figures["features of all clips"] = f"{total} on disk, of {len(clips)} clips"
    limit = recipe.features.disk_gib * 2**30
    if report.cache > limit:
        report.add(
            "warning",
            f"All features take {total}, features.disk_gib keeps {format_bytes(int(limit))}: some"
            " are computed again in every epoch.",
        )


def _hours(
    report: CheckReport, recipe: Recipe, samples: Mapping[str, Sequence[Sample]], estimated: Budget
) -> None:
    # The operations of a step are those of full batches, so steps are counted in full batches.
    batches = math.ceil(len(samples.get("train", [])) / recipe.training.batch_size)
    steps = optimizer_steps(recipe, batches) if batches else []
    work = estimated.features.flops * sum(map(len, samples.values()))
    for count, phase in zip(steps, estimated.stages, strict=False):
        work += count * phase.flops
    conditions = 1 + len(recipe.evaluation.conditions) + len(recipe.evaluation.inputs)
    work += estimated.evaluation.flops * len(samples.get("test", [])) * conditions
    hours = work / (A100_FLOPS * UTILIZATION) / 3600
    report.figures["time, roughly"] = (
        f"{hours:,.0f} h on an A100 at {UTILIZATION:.0%} of its {A100_FLOPS / 1e12:.0f} TFLOP/s, no"
        " stage stopped early; `modulate bench` measures"
    )


def format_mib(count: int) -> str:
    """Return a number of bytes in MiB."""
    return f"{count / 2**20:,.0f} MiB"
