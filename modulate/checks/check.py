"""What can be known of a recipe before training: data, signal coverage, dead layers, shapes,
settings without effect, what it takes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from modulate.checks.cost_model import Example, count_parameters, meta_recipe
from modulate.checks.cost_report import tell_costs
from modulate.checks.coverage import Probes, coverage
from modulate.checks.dead_layers import reach, twin_reach
from modulate.checks.findings import CheckReport, Finding, Level
from modulate.checks.meta_tensors import META
from modulate.checks.settings import check_settings
from modulate.checks.synthetic_data import ASSUMED
from modulate.config.recipe import Recipe
from modulate.data.alignment import align
from modulate.data.clip_shards import SPLITS
from modulate.data.feature_extractor import frame_times_of
from modulate.errors import HostError, MissingFileError, ModulateError
from modulate.hosts.host import EncodedPrompt
from modulate.inference.batching import LAST_LOGITS
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import Sample
from modulate.interfaces.frames import Frames
from modulate.modulation.module import Modulation

__all__ = ["CheckReport", "Finding", "check", "examples"]

QUESTION = (
    "Question: What is the person looking at right now, while the kettle is on?\nOptions:\nA. The"
    " red cup\nB. A knife\nC. The sink\nD. Bread\n\nThe best option is:"
)
"""A prompt of the usual length."""


def check(
    recipe: Recipe,
    cache: Path,
    prepare: bool = False,
    trust_remote_code: bool = False,
    meta: bool = False,
) -> CheckReport:
    """Check a validated recipe. Errors that are found become findings, not exceptions.

    ``prepare``: let the data set make its files first. ``trust_remote_code``: see
    :class:`modulate.inference.pipeline.Pipeline`. ``meta``: build host and backbone on meta
    tensors, without weights and memory; so it is done anyway when the recipe's weights are random,
    and when the host cannot be loaded.
    """
    report = CheckReport(recipe.name)
    pipeline = _opened(report, recipe, cache, trust_remote_code, meta)
    if pipeline is None:
        return report
    try:
        modulation = pipeline.fresh_modulation()
    except ModulateError as error:
        report.add("error", str(error))
        return report
    samples = _samples(report, pipeline, prepare)
    check_settings(report, recipe, samples)
    report.parameters = count_parameters(pipeline.model, pipeline.backbone, modulation)
    report.figures["parameters"] = "\n".join(
        f"{n:>13,} {name}" for name, n in report.parameters.items()
    )
    probes = Probes()
    try:
        training, evaluation = examples(pipeline, samples, probes)
    except ModulateError as error:
        report.add("error", str(error))
        return report
    _clip(report, evaluation, bool(samples))
    _dead_layers(report, pipeline, modulation, evaluation)
    grid = evaluation.prompt.grid
    coverage(
        report,
        pipeline,
        modulation.encoder,
        samples,
        grid,
        math.ceil(len(evaluation.times) / grid.steps),
        probes,
    )
    if pipeline.device != META:
        _trial(report, pipeline, modulation, samples)
    tell_costs(report, recipe, pipeline, cache, samples, training, evaluation)
    return report


def _opened(
    report: CheckReport, recipe: Recipe, cache: Path, trust: bool, meta: bool
) -> Pipeline | None:
    """Load what the recipe names, or build it on meta tensors."""
    asked = meta or recipe.host.params.get("weights") == "random"
    try:
        if not asked:
            pipeline = Pipeline(recipe, cache, trust_remote_code=trust)
            pipeline.build_deferred()
            return pipeline
    except HostError as error:
        report.add("error", f"{error} What follows was found without its weights, as --meta does.")
    except ModulateError as error:
        report.add("error", str(error))
        return None
    try:
        with META:
            pipeline = Pipeline(meta_recipe(recipe), cache, trust_remote_code=trust)
            pipeline.build_deferred()
    except ModulateError as error:
        report.add("error", str(error))
        return None
    if asked:
        report.add(
            "info",
            "Host and backbone were built on meta tensors: shapes are real, nothing was loaded or"
            " computed, and no sample was tried.",
        )
    return pipeline


# --- data


def _samples(report: CheckReport, pipeline: Pipeline, prepare: bool) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {}
    try:
        if prepare:
            pipeline.make_data()
        for split in SPLITS:
            samples[split] = pipeline.dataset.samples(split)
    except MissingFileError as error:
        hint = "" if prepare else " If the data set can make them, --prepare does so."
        report.add("error" if prepare else "warning", f"There are no data to check: {error}{hint}")
    except ModulateError as error:
        report.add("error", str(error))
    report.samples = {split: len(items) for split, items in samples.items()}
    if samples:
        report.figures["samples"] = ", ".join(f"{n} {split}" for split, n in report.samples.items())
    return samples


def examples(
    pipeline: Pipeline, samples: Mapping[str, Sequence[Sample]], probes: Probes
) -> tuple[Example, Example]:
    """Return the largest clip that is trained on and the largest there is, with its sample's prompt
    and noise for pixels; assumed ones without samples.
    """
    largest = _largest(
        pipeline, [s for items in samples.values() for s in items], probes, training=False
    )
    if pipeline.recipe.sampling.train_max_frames is None:
        return largest, largest
    return _largest(pipeline, samples.get("train", []), probes, training=True), largest


def _largest(
    pipeline: Pipeline, samples: Sequence[Sample], probes: Probes, training: bool
) -> Example:
    best: tuple[int, Sample | None, tuple[int, int]] = (0, None, ASSUMED)
    for sample in samples:
        try:
            info = probes[sample.video]
        except ModulateError:  # told of where the coverage is counted
            continue
        best = max(
            best,
            (
                len(pipeline.times(sample, training)) * info.height * info.width,
                sample,
                (info.height, info.width),
            ),
            key=lambda found: found[0],
        )
    _, chosen, (height, width) = best
    sampling = pipeline.recipe.sampling
    window = (
        (0.0, (sampling.frame_cap(training) - 1) / sampling.rate(0.0))
        if chosen is None
        else chosen.window
    )
    times = frame_times_of(sampling, window, training)
    text = QUESTION if chosen is None else pipeline.dataset.prompt(chosen, pipeline.recipe.answer)
    images = np.random.default_rng(0).integers(
        0, 256, (len(times), height, width, 3), dtype=np.uint8
    )
    with pipeline.recipe.host.blame("host", "encode"):
        prompt = pipeline.host.encode(
            pipeline.processor, text, Frames(images, tuple(times)), window
        )
    return Example(prompt, (len(times), height, width), tuple(times))


# --- the model


def _clip(report: CheckReport, example: Example, found: bool) -> None:
    grid = example.prompt.grid
    length = example.prompt.inputs["input_ids"].shape[1]
    report.figures["visual tokens of a clip"] = (
        f"{grid.tokens} = {grid.steps} steps × {grid.rows} × {grid.cols}, prompt of {length}"
    )
    if not found:
        frames, height, width = example.frames
        report.add(
            "info",
            f"Without data a clip is taken to have {frames} frames of {width} × {height} pixels;"
            " tokens, memory and operations depend on it.",
        )


def _dead_layers(
    report: CheckReport, pipeline: Pipeline, modulation: Modulation, example: Example
) -> None:
    try:
        if pipeline.device == META:
            report.reach = twin_reach(
                pipeline.recipe,
                pipeline.model,
                pipeline.processor,
                pipeline.backbone.d_features,
            )
            how = "by gradient, on a narrow twin"
        else:
            inputs = {
                key: value.to(pipeline.device) for key, value in example.prompt.inputs.items()
            }
            report.reach = reach(
                pipeline.model, modulation.to(pipeline.device), inputs, example.prompt.grid
            )
            how = "by gradient"
    except HostError as error:
        report.add("info", f"Dead layers were not looked for: {error}")
        return
    finally:
        modulation.cpu()
    dead = [str(layer) for layer, gradient in report.reach.items() if gradient == 0.0]
    report.figures["layers that reach the answer"] = (
        f"{len(report.reach) - len(dead)} of {len(report.reach)} injected ones ({how})"
    )
    if dead:
        level: Level = "error" if len(dead) == len(report.reach) else "warning"
        report.add(
            level,
            f"Injection into layer {', '.join(dead)} cannot change the answer: its gradient is"
            " exactly 0 there. Leave it out of injection.layers.",
        )


def _trial(
    report: CheckReport,
    pipeline: Pipeline,
    modulation: Modulation,
    samples: Mapping[str, Sequence[Sample]],
) -> None:
    """Take one real sample through everything, as training does; of noise, where there is none,
    through host's processor and backbone.
    """
    firsts = [items[0] for items in samples.values() if items]
    for sample in firsts:
        try:
            batch = pipeline.collate([prepared := pipeline.prepare(sample)])
            with (
                modulation.to(pipeline.device).attached(pipeline.model) as attachment,
                attachment.condition([[prepared.clip(prepared.signal)]]),
            ):
                attachment.model(**batch.inputs, **LAST_LOGITS)
            return
        except ModulateError as error:
            report.add("error", str(error))
    times = (0.0, 1.0, 2.0, 3.0)
    images = np.zeros((4, 64, 64, 3), np.uint8)
    try:
        encoded: EncodedPrompt = pipeline.host.encode(
            pipeline.processor, QUESTION, Frames(images, times), (0.0, 3.0)
        )
        with torch.inference_mode():
            align(
                pipeline.backbone(torch.from_numpy(images).to(pipeline.device), times), encoded.grid
            )
    except ModulateError as error:
        report.add("error", str(error))
