"""Find settings of a recipe that have no effect, cannot work, or change what figures mean."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accelerate.tracking import LoggerType, get_available_trackers

from modulate.checks.findings import CheckReport, Level
from modulate.config.recipe import Recipe
from modulate.errors import DataError
from modulate.inference.controls import ShufflePool, needed_for_draw
from modulate.inference.preparation import refuse_untransformable
from modulate.interfaces.components import Params
from modulate.interfaces.sample import Sample
from modulate.training.epoch_sampler import epoch_batches
from modulate.training.optimizer_step import StagePlan


def check_settings(
    report: CheckReport, recipe: Recipe, samples: Mapping[str, Sequence[Sample]]
) -> None:
    """Add findings on the settings of ``recipe``; ``samples`` by split may be empty."""
    _without_effect(report, recipe)
    _caches(report, recipe)
    _departures(report, recipe)
    _steps(report, recipe, samples.get("train", []))
    if recipe.training.batch_by == "clip" and recipe.training.accumulation == 1:
        report.add(
            "warning",
            "training.batch_by is `clip` and training.accumulation is 1: an optimizer step sees a"
            " single clip. Raise training.accumulation (docs/how-to/train-faster.md).",
        )
    for tracker in recipe.training.trackers:
        if LoggerType(tracker) not in get_available_trackers():
            report.add(
                "error",
                f"training.trackers asks for {tracker!r}, which is not installed: pip install"
                f" 'modulate[{tracker}]', or remove it.",
            )
    _inputs_and_shuffling(report, recipe, samples)
    every = [sample for items in samples.values() for sample in items]
    pictures = sum(any(clip.is_image for clip in sample.clips) for sample in every)
    if pictures and recipe.features.vision_tower_cache_gib:
        report.add(
            "info",
            f"features.vision_tower_cache_gib serves videos only; {pictures} of"
            f" {len(every)} samples show pictures.",
        )


def _inputs_and_shuffling(
    report: CheckReport, recipe: Recipe, samples: Mapping[str, Sequence[Sample]]
) -> None:
    """Report input transforms and shuffling that the samples do not allow."""
    try:
        refuse_untransformable(recipe, [sample for items in samples.values() for sample in items])
    except DataError as error:
        report.add("error", str(error))
    if "shuffled" not in recipe.evaluation.conditions:
        return
    tested = samples.get("test", [])
    pool = ShufflePool(tested)
    for is_image in (False, True):
        without = [
            sample.id
            for sample in tested
            for index, clip in enumerate(sample.clips)
            if clip.is_image == is_image
            and sample.has_signals(clip)
            and not pool.candidates(sample, index)
        ]
        if without:
            report.add(
                "error",
                "The control `shuffled` needs test samples of at least two"
                f" {needed_for_draw(is_image)}. None can be drawn for {len(without)} clips, the"
                f" first of sample {without[0]}.",
            )


def _without_effect(report: CheckReport, recipe: Recipe) -> None:
    """Report settings that another setting switches off."""
    training = recipe.training
    trained = {part for stage in recipe.training.stages for part in stage.train}
    if recipe.lora is not None and "lora" not in trained:
        report.add(
            "warning",
            "`lora` is set, but no stage trains it: it stays at zero and changes nothing.",
        )
    for stage in training.stages:
        if stage.lora_lr is not None and "lora" not in stage.train:
            report.add("warning", f"Stage {stage.name!r} has a lora_lr, but does not train lora.")
    if training.patience is not None and training.validate_every is None:
        report.add(
            "warning", "`patience` has no effect without validation; set training.validate_every."
        )
    if training.augment and training.condition != "signal":
        report.add(
            "info",
            f"`augment` has no effect: training under {training.condition!r} sees no signal.",
        )


def _caches(report: CheckReport, recipe: Recipe) -> None:
    """Report caches of the host that will never be hit."""
    training = recipe.training
    features = recipe.features
    # A cached output belongs to a whole batch, and such batches differ in every epoch.
    mixed = training.batch_size > 1 and training.batch_by != "clip"
    if mixed and features.vision_tower_cache_gib and features.vision_tower_cache_by == "call":
        report.add(
            "warning",
            "features.vision_tower_cache_gib finds nothing in training: every epoch mixes batches"
            " anew, and features.vision_tower_cache_by is `call`. Set it to `clip`, or set"
            " training.batch_by to `clip`.",
        )
    if mixed and features.hidden_state_cache_gib:
        report.add(
            "warning",
            "features.hidden_state_cache_gib finds nothing in training: every epoch mixes batches"
            " anew. Set training.batch_by to `clip`.",
        )
    if features.vision_tower_cache_by != "call" and not features.vision_tower_cache_gib:
        report.add(
            "warning",
            f"features.vision_tower_cache_by is `{features.vision_tower_cache_by}`, which has no"
            " effect without features.vision_tower_cache_gib.",
        )
    if features.hidden_state_cache_gib and training.gradient_checkpointing:
        report.add(
            "warning",
            "features.hidden_state_cache_gib has no effect in training with"
            " training.gradient_checkpointing: layers must run to be recomputed.",
        )
    for stage in training.stages if features.hidden_state_cache_gib else ():
        if "lora" in stage.train:
            report.add(
                "info",
                f"features.hidden_state_cache_gib has no effect in stage {stage.name!r}, which"
                " trains LoRA in the layers whose outputs would be cached.",
            )


def _departures(report: CheckReport, recipe: Recipe) -> None:
    """Report options that reproduce the code of GazeQwen, and the consequence of each."""
    for level, text in (*_sampling_departures(recipe), *_other_departures(recipe)):
        report.add(level, text)
    parts: list[tuple[str, Any]] = [("injection", recipe.injection)]
    for key, kind, spec in recipe.component_specs():
        parts.append((f"{key}.params", spec.resolved(kind)[1]))
    for key, params in parts:
        if isinstance(params, Params):
            for level, text in params.departures():
                report.add(level, f"{key}.{text}")


def _sampling_departures(recipe: Recipe) -> Iterator[tuple[Level, str]]:
    sampling = recipe.sampling
    if sampling.clock == "requested":
        yield (
            "warning",
            "sampling.clock is `requested`: steps are timed by the requested rate, not by their"
            " frames, so in longer clips the signal reaches the wrong steps or none.",
        )
    if sampling.processor_fps is not None:
        yield (
            "warning",
            f"sampling.processor_fps is {sampling.processor_fps}: the host is given this rate"
            " instead of the true one, so its own sense of time is wrong.",
        )
    if sampling.alignment == "index":
        yield (
            "warning",
            "sampling.alignment is `index`: features meet the steps by their order, not by their"
            " times; where the numbers differ they show other moments.",
        )
    if not sampling.antialias:
        yield (
            "warning",
            "sampling.antialias is false: on a visual grid coarser than the features', each token"
            " sees the four features around its center, and no token sees the others.",
        )
    cap = sampling.train_max_frames
    if cap is not None and cap < sampling.max_frames:
        yield (
            "info",
            f"sampling.train_max_frames is {cap}: training sees fewer frames than the"
            f" {sampling.max_frames} of the evaluation, and the signal at fewer steps.",
        )


def _other_departures(recipe: Recipe) -> Iterator[tuple[Level, str]]:
    if recipe.training.schedule == "one_cycle":
        yield (
            "info",
            "training.schedule is `one_cycle`: the learning rate starts at 1/25 of its peak instead"
            " of 0 and rises on a cosine, and momentum cycles with it.",
        )
    if recipe.training.empty == "skip":
        yield (
            "info",
            "training.empty is `skip`: samples without a signal are excluded from training, but not"
            " from the evaluation.",
        )
    if recipe.letters == "four":
        yield (
            "warning",
            "letters is `four`: an answer that was never offered can win and counts as wrong, so"
            " questions with fewer than four options become harder.",
        )
    if recipe.evaluation.failed == "left_out":
        yield (
            "warning",
            "evaluation.failed is `left_out`: samples that fail leave the count, so accuracies of"
            " runs with different failures are not comparable.",
        )


def _steps(report: CheckReport, recipe: Recipe, samples: Sequence[Sample]) -> None:
    """Add the optimizer steps of every stage, and findings on schedules that do not fit them."""
    training = recipe.training
    if not samples:
        return
    batches = len(epoch_batches(samples, training.batch_size, training.batch_by, random.Random(0)))
    content = _step_content(report, recipe, len(samples), batches)
    for stage, steps in zip(training.stages, optimizer_steps(recipe, batches), strict=True):
        report.figures[f"stage {stage.name}"] = (
            f"{steps} optimizer steps of {content}, training {' + '.join(stage.train)}"
        )
        if training.warmup_steps > steps // 2:
            report.add(
                "info",
                f"warmup_steps is {training.warmup_steps}, stage {stage.name!r} has {steps} steps:"
                f" its warm-up is shortened to {steps // 2}.",
            )
        if training.patience is None or training.validate_every is None:
            continue
        if training.patience * training.validate_every >= stage.epochs:
            report.add(
                "warning",
                f"`patience` cannot stop stage {stage.name!r}: its {stage.epochs:g} epochs end"
                f" before {training.patience} validations without progress.",
            )


def _step_content(report: CheckReport, recipe: Recipe, total: int, batches: int) -> str:
    """Return what one optimizer step consists of; report one larger than the training split."""
    training = recipe.training
    if training.batch_by == "clip":
        if training.accumulation > batches:
            report.add(
                "info",
                f"One optimizer step takes {training.accumulation} batches, but the training split"
                f" has only {batches}: a step goes through it more than once.",
            )
        clips = "a clip" if training.accumulation == 1 else f"{training.accumulation} clips"
        mean = total / batches * training.accumulation
        return f"{clips}, {mean:.1f} samples on average"
    size = training.batch_size * training.accumulation
    if size > total:
        report.add(
            "info",
            f"One optimizer step takes {size} samples, but the training split has only {total}: a"
            " step goes through it more than once.",
        )
    return f"{size} samples"


def optimizer_steps(recipe: Recipe, batches: int) -> list[int]:
    """Return the optimizer steps of every stage, for ``batches`` per epoch and no early stop."""
    training = recipe.training
    plans = [StagePlan.of(stage, batches, training.accumulation) for stage in training.stages]
    return [plan.steps for plan in plans]
