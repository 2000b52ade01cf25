"""Settings of a recipe that will have no effect, cannot be met, or change what the figures mean."""

import math
import random
from collections.abc import Mapping, Sequence

from accelerate.tracking import LoggerType, get_available_trackers

from modulate.checks.findings import CheckReport, Level
from modulate.config.recipe import Recipe
from modulate.interfaces.components import Params, Sample
from modulate.training.data_loader import arranged


def check_settings(
    report: CheckReport, recipe: Recipe, samples: Mapping[str, Sequence[Sample]]
) -> None:
    """Add findings on the recipe's settings, given its samples by split as far as there are any."""
    _without_effect(report, recipe)
    _keeping(report, recipe)
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
                f" 'modulate[{tracker}]', or take it out.",
            )
    if (
        len({s.video for s in samples.get("test", [])}) == 1
        and "shuffled" in recipe.evaluation.conditions
    ):
        report.add(
            "error",
            "The control `shuffled` needs test samples of at least two videos; there is one.",
        )


def _without_effect(report: CheckReport, recipe: Recipe) -> None:
    training = recipe.training
    trained = {part for stage in recipe.training.stages for part in stage.train}
    if recipe.lora is not None and "lora" not in trained:
        report.add(
            "warning",
            "`lora` is given, but no stage trains it: it stays at zero and changes nothing.",
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
    repeated = sorted(
        {layer for layer in recipe.injection.layers if recipe.injection.layers.count(layer) > 1}
    )
    if repeated:
        report.add(
            "warning",
            f"injection.layers names layer {repeated[0]} more than once: it gets several"
            " residuals.",
        )


def _keeping(report: CheckReport, recipe: Recipe) -> None:
    """Say where what is kept of the host finds nothing."""
    training = recipe.training
    features = recipe.features
    mixed = training.batch_size > 1 and training.batch_by != "clip"
    if mixed and features.vision_tower_cache_gib and features.vision_tower_cache_by == "call":
        report.add(
            "warning",
            "features.vision_tower_cache_gib finds nothing in training: every epoch mixes batches"
            " anew, and features.vision_tower_cache_by is `call`. Take `clip`, or"
            " training.batch_by: clip.",
        )
    if mixed and features.hidden_state_cache_gib:
        report.add(
            "warning",
            "features.hidden_state_cache_gib finds nothing in training: every epoch mixes batches"
            " anew. Take training.batch_by: clip.",
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
            " training.gradient_checkpointing: layers that are recomputed must run.",
        )
    for stage in training.stages if features.hidden_state_cache_gib else ():
        if "lora" in stage.train:
            report.add(
                "info",
                f"features.hidden_state_cache_gib rests in stage {stage.name!r}, which trains LoRA"
                " in the layers whose states it keeps.",
            )


def _departures(report: CheckReport, recipe: Recipe) -> None:
    """Name options that make things as GazeQwen's code has them, and what follows from each."""
    sampling = recipe.sampling
    training = recipe.training
    evaluation = recipe.evaluation
    cap = sampling.train_max_frames
    chosen: list[tuple[bool, Level, str]] = [
        (
            sampling.clock == "requested",
            "warning",
            (
                "sampling.clock is `requested`: steps are timed by the rate asked for, not by their"
                " frames, so that in longer clips the signal meets the wrong steps or none."
            ),
        ),
        (
            sampling.processor_fps is not None,
            "warning",
            (
                f"sampling.processor_fps is {sampling.processor_fps}: the host is told that rate"
                " whatever the true one, so that its own sense of time is wrong."
            ),
        ),
        (
            sampling.alignment == "index",
            "warning",
            (
                "sampling.alignment is `index`: features meet the steps by their order, not by"
                " their times; where the numbers differ they show other moments."
            ),
        ),
        (
            not sampling.antialias,
            "warning",
            (
                "sampling.antialias is false: on a visual grid coarser than the features' each"
                " token sees the four features around its centre, and others are seen by none."
            ),
        ),
        (
            cap is not None and cap < sampling.max_frames,
            "info",
            (
                f"sampling.train_max_frames is {cap}: training sees fewer frames than the"
                f" {sampling.max_frames} of the evaluation, and the signal at fewer steps."
            ),
        ),
        (
            training.schedule == "one_cycle",
            "info",
            (
                "training.schedule is `one_cycle`: the rate starts at 1/25 of its peak instead of 0"
                " and rises on a cosine, and momentum cycles with it."
            ),
        ),
        (
            training.empty == "skip",
            "info",
            (
                "training.empty is `skip`: samples without a signal are left out of training, but"
                " are in the evaluation."
            ),
        ),
        (
            recipe.letters == "four",
            "warning",
            (
                "letters is `four`: an answer that was never offered can win, and counts as wrong:"
                " questions with fewer than four options become harder."
            ),
        ),
        (
            evaluation.failed == "left_out",
            "warning",
            (
                "evaluation.failed is `left_out`: samples that fail leave the count, so that"
                " accuracies of runs with different failures are not comparable."
            ),
        ),
    ]
    for present, level, text in chosen:
        if present:
            report.add(level, text)
    parts = [
        ("injection", recipe.injection),
        *((f"{key}.params", choice.resolved(kind)[1]) for key, kind, choice in recipe.component_specs()),
    ]
    for key, params in parts:
        for level, text in params.departures() if isinstance(params, Params) else ():
            report.add(level, f"{key}.{text}")


def _steps(report: CheckReport, recipe: Recipe, samples: Sequence[Sample]) -> None:
    training = recipe.training
    n = len(samples)
    if not n:
        return
    size = training.batch_size * training.accumulation
    batches = len(arranged(samples, training.batch_size, training.batch_by, random.Random(0)))
    of = f"{size} samples"
    if training.batch_by == "clip":
        clips = "a clip" if training.accumulation == 1 else f"{training.accumulation} clips"
        of = f"{clips}, {n / batches * training.accumulation:.1f} samples on average"
        if training.accumulation > batches:
            report.add(
                "info",
                f"One optimizer step takes {training.accumulation} batches, the training split"
                f" makes {batches}: it goes through it more than once.",
            )
    elif size > n:
        report.add(
            "info",
            f"One optimizer step takes {size} samples, the training split has {n}: it goes through"
            " it more than once.",
        )
    for stage, steps in zip(training.stages, optimizer_steps(recipe, batches), strict=True):
        report.figures[f"stage {stage.name}"] = (
            f"{steps} optimizer steps of {of}, training {' + '.join(stage.train)}"
        )
        if training.warmup_steps > steps // 2:
            report.add(
                "info",
                f"warmup_steps is {training.warmup_steps}, stage {stage.name!r} has {steps} steps:"
                f" its warm-up is shortened to {steps // 2}.",
            )
        if (
            training.patience is not None
            and training.validate_every is not None
            and training.patience * training.validate_every >= stage.epochs
        ):
            report.add(
                "warning",
                f"`patience` cannot stop stage {stage.name!r}: its {stage.epochs:g} epochs end"
                f" before {training.patience} validations without progress.",
            )


def optimizer_steps(recipe: Recipe, batches: int) -> list[int]:
    """Return the optimizer steps of every stage on this many batches in an epoch, none stopped
    early.
    """
    per_epoch = math.ceil(batches / recipe.training.accumulation)
    return [max(1, round(stage.epochs * per_epoch)) for stage in recipe.training.stages]
