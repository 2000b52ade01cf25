"""Check a recipe before training: data, signal coverage, dead layers, settings, and costs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from modulate.checks.cost_model import count_parameters, meta_recipe
from modulate.checks.cost_report import add_costs
from modulate.checks.coverage import Probes, coverage
from modulate.checks.data_answers import check_answer_forms
from modulate.checks.dead_layers import reach, twin_reach
from modulate.checks.examples import QUESTION, Example, examples
from modulate.checks.findings import CheckReport, Finding, Level
from modulate.checks.meta_tensors import META
from modulate.checks.settings import check_settings
from modulate.config.recipe import Recipe
from modulate.data.alignment import align
from modulate.data.clip_shards import SPLITS
from modulate.errors import HostError, MissingFileError, ModulateError
from modulate.hosts.encoding import EncodedPrompt
from modulate.inference.answer_scorer import AnswerScorer
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import VideoClip, user_turn
from modulate.interfaces.result_checks import check_frame_features
from modulate.interfaces.sample import Sample
from modulate.modulation.module import Modulation

__all__ = ["CheckReport", "Finding", "check"]


def check(
    recipe: Recipe,
    cache: Path,
    prepare: bool = False,
    trust_remote_code: bool = False,
    meta: bool = False,
) -> CheckReport:
    """Check a validated recipe. Errors become findings, not exceptions.

    ``prepare``: first let the dataset generate or download its files. ``trust_remote_code``: see
    :class:`modulate.inference.pipeline.Pipeline`. ``meta``: build host and backbone on meta
    tensors, without weights or memory. That is the default for a recipe with random weights, and
    the fallback when the host cannot be loaded.
    """
    report = CheckReport(recipe.name)
    pipeline = _opened(report, recipe, cache, trust_remote_code, meta)
    if pipeline is None:
        return report
    try:
        modulation = pipeline.fresh_modulation()
        samples = _samples(report, pipeline, prepare)
        check_settings(report, recipe, samples)
        check_answer_forms(report, pipeline, samples)
        _parameters(report, pipeline, modulation)
        probes = Probes()
        training, evaluation = examples(pipeline, samples, probes)
    # Everything below needs a modulation and a clip.
    except ModulateError as error:
        report.add("error", str(error))
        return report
    _clip(report, evaluation, bool(samples))
    _dead_layers(report, pipeline, modulation, evaluation)
    # Of a video where there is one: pictures do not tell how many frames make a step.
    clips = zip(evaluation.clips, evaluation.prompt.grids, strict=True)
    clip, grid = min(clips, key=lambda pair: pair[0].is_image)
    per_step = math.ceil(len(clip.times) / grid.steps)
    coverage(report, pipeline, modulation.encoder, samples, grid, per_step, probes)
    # On meta tensors nothing can be computed, so no sample can be tried.
    if pipeline.device != META:
        _trial(report, pipeline, modulation, samples)
    add_costs(report, recipe, pipeline, cache, samples, training, evaluation)
    return report


def _opened(
    report: CheckReport, recipe: Recipe, cache: Path, trust: bool, meta: bool
) -> Pipeline | None:
    """Load host and backbone, or build them on meta tensors; None if neither works."""
    on_meta = meta or recipe.host.params.get("weights") == "random"
    try:
        if not on_meta:
            pipeline = Pipeline(recipe, cache, trust_remote_code=trust)
            pipeline.build_deferred()
            return pipeline
    except HostError as error:
        report.add("error", f"{error} The other checks ran on meta tensors, as with --meta.")
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
    if on_meta:
        report.add(
            "info",
            "Host and backbone were built on meta tensors: shapes are real, but no weights were"
            " loaded, nothing was computed, and no sample was tried.",
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
        hint = "" if prepare else " Add --prepare if the dataset can generate or download them."
        report.add("error" if prepare else "warning", f"There are no data to check: {error}{hint}")
    except ModulateError as error:
        report.add("error", str(error))
    report.samples = {split: len(items) for split, items in samples.items()}
    if samples:
        report.figures["samples"] = ", ".join(
            f"{count} {split}" for split, count in report.samples.items()
        )
    return samples


# --- the model


def _parameters(report: CheckReport, pipeline: Pipeline, modulation: Modulation) -> None:
    report.parameters = count_parameters(pipeline.model, pipeline.backbone, modulation)
    report.figures["parameters"] = "\n".join(
        f"{count:>13,} {name}" for name, count in report.parameters.items()
    )


def _clip(report: CheckReport, example: Example, has_data: bool) -> None:
    sizes = " + ".join(
        f"{grid.steps} steps × {grid.rows} × {grid.cols}" for grid in example.prompt.grids
    )
    tokens = sum(grid.tokens for grid in example.prompt.grids)
    length = example.prompt.inputs["input_ids"].shape[1]
    report.figures["visual tokens of a clip"] = f"{tokens} = {sizes}, prompt of {length}"
    if not has_data:
        frames, height, width = example.largest.frames
        report.add(
            "info",
            f"Without data, clips are assumed to have {frames} frames of {width} × {height} pixels;"
            " tokens, memory and operations depend on that.",
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
                pipeline.model, modulation.to(pipeline.device), inputs, example.prompt.grids
            )
            how = "by gradient"
    except HostError as error:
        report.add("info", f"Dead layers were not checked: {error}")
        return
    # The check of coverage runs the encoder on the CPU.
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
            " exactly 0 there. Remove it from injection.layers.",
        )


def _trial(
    report: CheckReport,
    pipeline: Pipeline,
    modulation: Modulation,
    samples: Mapping[str, Sequence[Sample]],
) -> None:
    """Run one real sample through the whole pipeline, as in training.

    Without any, run blank frames through the host's processor and the backbone.
    """
    firsts = [items[0] for items in samples.values() if items]
    for sample in firsts:
        try:
            prepared = pipeline.prepare(sample)
            ready = [(prepared, prepared.clip_inputs())]
            with modulation.to(pipeline.device).attached(pipeline.model) as attachment:
                scorer = AnswerScorer(pipeline, attachment.model, attachment.condition)
                if pipeline.recipe.answer == "text":
                    scorer.token_scores(ready, 0)
                else:
                    scorer.option_scores(ready, 0)
            return
        except ModulateError as error:
            report.add("error", str(error))
    # No split has a sample that works.
    times = (0.0, 1.0, 2.0, 3.0)
    images = np.zeros((4, 64, 64, 3), np.uint8)
    try:
        encoded: EncodedPrompt = pipeline.host.encode(
            pipeline.processor, user_turn(VideoClip(Frames(images, times), (0.0, 3.0)), QUESTION)
        )
        with torch.inference_mode(), pipeline.recipe.backbone.blame("backbone", "forward"):
            features = pipeline.backbone(torch.from_numpy(images).to(pipeline.device), times)
            align(check_frame_features(features, pipeline.backbone, times), encoded.grids[0])
    except ModulateError as error:
        report.add("error", str(error))
