"""What can be known of a recipe before training: data, signal coverage, dead layers, shapes, settings without effect, sizes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from modulate.components import Sample
from modulate.errors import MissingFileError, ModulateError, VideoError
from modulate.features import align
from modulate.grid import VisualGrid, visual_grid
from modulate.modulation import Modulation
from modulate.pipeline import Pipeline
from modulate.reach import kept_bytes, reach
from modulate.recipe import Recipe
from modulate.signals import Signal
from modulate.video import Frames, probe, sample_times

SPLITS = ("train", "val", "test")
CHUNK = 16  # clips encoded at once when coverage is counted


@dataclass(frozen=True)
class Finding:
    """Something to know: an ``error`` stops or spoils a run, a ``warning`` is probably not meant, an ``info`` is worth knowing."""

    level: Literal["error", "warning", "info"]
    text: str


@dataclass
class Report:
    """What a check found. ``figures``: what is shown, name → text; the numbers behind them are in the fields.

    ``parameters``: by part; ``samples`` and ``coverage``: by split, coverage being the share of samples whose signal is active at some
    step; ``reach``: per injected layer the gradient's norm, 0.0 for a dead one; ``memory``: estimated bytes by part.
    """

    recipe: str
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    coverage: dict[str, float] = field(default_factory=dict)
    reach: dict[int, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return all(f.level != "error" for f in self.findings)

    def add(self, level: Literal["error", "warning", "info"], text: str) -> None:
        """Add a finding, once."""
        if (finding := Finding(level, text)) not in self.findings:
            self.findings.append(finding)


def check(recipe: Recipe, cache: Path, prepare: bool = False, trust_remote_code: bool = False) -> Report:
    """Check a validated recipe. Errors that are found become findings, not exceptions.

    ``prepare``: let the data set make its files first. ``trust_remote_code``: see :class:`modulate.pipeline.Pipeline`.
    """
    report = Report(recipe.name)
    try:
        pipeline = Pipeline(recipe, cache, trust_remote_code=trust_remote_code)
        modulation = pipeline.fresh_modulation().to(pipeline.device)
    except ModulateError as error:
        report.add("error", str(error))
        return report
    samples = _samples(report, pipeline, prepare)
    _settings(report, recipe, samples)
    _parameters(report, pipeline, modulation)
    clip = _clip(report, pipeline, samples)
    if clip is not None:
        inputs, grid, frames = clip
        report.figures["visual tokens of a clip"] = f"{grid.tokens} = {grid.steps} steps × {grid.rows} × {grid.cols}, prompt of {inputs['input_ids'].shape[1]}"
        _dead_layers(report, pipeline, modulation, inputs, grid)
        _coverage(report, pipeline, modulation, samples, grid, math.ceil(frames / grid.steps))
        _trial(report, pipeline, modulation, samples)
    return report


# --- data -------------------------------------------------------------------------------------------------------------------------------


def _samples(report: Report, pipeline: Pipeline, prepare: bool) -> dict[str, list[Sample]]:
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
    if len({s.video for s in samples.get("test", [])}) == 1 and "shuffled" in pipeline.recipe.evaluation.conditions:
        report.add("error", "The control `shuffled` needs test samples of at least two videos; there is one.")
    return samples


def _coverage(report: Report, pipeline: Pipeline, modulation: Modulation, samples: dict[str, list[Sample]], grid: VisualGrid, per_step: int) -> None:
    """Count samples whose signal is active at some step. Nothing is decoded but the first frame of every video, for its duration."""
    ends: dict[Path, float] = {}
    wrong: list[str] = []
    for split, items in samples.items():
        active = 0
        ready: list[tuple[Signal, VisualGrid]] = []
        for sample in items:
            try:
                ready.append(_probed(pipeline, sample, grid, per_step, ends, split == "train"))
            except ModulateError as error:
                wrong.append(f"Sample {sample.id} ({split}): {error}")
        for start in range(0, len(ready), CHUNK):
            chunk = ready[start : start + CHUNK]
            with torch.no_grad():
                reached: Tensor = modulation.encoder([s for s, _ in chunk], [g for _, g in chunk]).active
            active += sum(bool(part.any()) for part in reached.split([g.steps for _, g in chunk]))
        if items:
            report.coverage[split] = active / len(items)
    if report.coverage:
        report.figures["samples whose signal is active"] = ", ".join(f"{100 * share:.1f} % {split}" for split, share in report.coverage.items())
    for split, share in report.coverage.items():
        if share < 1:
            report.add("error" if share == 0 else "warning", f"In {100 * (1 - share):.1f} % of the {split} samples the signal is active at no sampled step.")
    for text in wrong[:5]:
        report.add("error", text)
    if len(wrong) > 5:
        report.add("error", f"… and {len(wrong) - 5} more samples that cannot be used.")


def _probed(pipeline: Pipeline, sample: Sample, grid: VisualGrid, per_step: int, ends: dict[Path, float], training: bool) -> tuple[Signal, VisualGrid]:
    """Return a sample's signal and the grid that its sampling will make, frames taken to come exactly when they are asked for."""
    if sample.video not in ends:
        info = probe(sample.video)
        ends[sample.video] = info.duration + 1 / info.fps  # the last frame is still on screen; reading frames allows as much
    end = ends[sample.video]
    if sample.window[1] > end:
        raise VideoError(f"the question at {sample.window[1]:.2f} s lies beyond the end of {sample.video}, which ends at {end:.2f} s.")
    times = pipeline.times(sample, training)
    return pipeline.signal(sample), pipeline.grid_of(sample, visual_grid(times, per_step, grid.rows, grid.cols, sample.window), len(times))


# --- the model --------------------------------------------------------------------------------------------------------------------------


def _clip(report: Report, pipeline: Pipeline, samples: dict[str, list[Sample]]) -> tuple[dict[str, Tensor], VisualGrid, int] | None:
    """Return inputs, grid and number of frames of a split's first sample that can be prepared, or of noise where there is none."""
    for sample in [items[0] for items in samples.values() if items]:
        try:
            prepared = pipeline.prepare(sample)
        except ModulateError as error:
            report.add("error", str(error))
        else:
            assert prepared.grid is not None
            return _here(prepared.inputs, pipeline), prepared.grid, len(pipeline.times(sample))
    try:
        return _noise(pipeline)
    except ModulateError as error:
        report.add("error", str(error))
        return None


def _noise(pipeline: Pipeline, seconds: float = 4.0) -> tuple[dict[str, Tensor], VisualGrid, int]:
    """Encode a clip of random frames, and check that the backbone's features fit its grid."""
    sampling = pipeline.recipe.sampling
    times = sample_times((0.0, seconds), sampling.rate(seconds), sampling.max_frames)
    images = np.random.default_rng(0).integers(0, 256, (len(times), 64, 64, 3), dtype=np.uint8)
    encoded = pipeline.host.encode(pipeline.processor, "What is this?", Frames(images, tuple(times)), (0.0, seconds))
    with torch.inference_mode():
        align(pipeline.backbone(torch.from_numpy(images).to(pipeline.device), times), encoded.grid)
    return _here(encoded.inputs, pipeline), encoded.grid, len(times)


def _here(inputs: dict[str, Tensor], pipeline: Pipeline) -> dict[str, Tensor]:
    return {key: value.to(pipeline.device) for key, value in inputs.items()}


def _dead_layers(report: Report, pipeline: Pipeline, modulation: Modulation, inputs: dict[str, Tensor], grid: VisualGrid) -> None:
    report.reach = reach(pipeline.model, modulation, inputs, grid)
    dead = [str(layer) for layer, gradient in report.reach.items() if gradient == 0.0]
    report.figures["layers that reach the answer"] = f"{len(report.reach) - len(dead)} of {len(report.reach)} injected ones (by gradient)"
    if dead:
        level: Literal["error", "warning"] = "error" if len(dead) == len(report.reach) else "warning"
        report.add(
            level, f"Injection into layer {', '.join(dead)} cannot change the answer: its gradient is exactly 0 there. Leave it out of injection.layers."
        )


def _trial(report: Report, pipeline: Pipeline, modulation: Modulation, samples: dict[str, list[Sample]]) -> None:
    """Run one real sample through everything, as training does, and measure what it keeps for the backward."""
    first = next((items[0] for items in samples.values() if items), None)
    activations = 0
    if first is not None:
        try:
            batch = pipeline.collate([prepared := pipeline.prepare(first)])
            with modulation.attached(pipeline.model) as attachment, attachment.condition([[prepared.clip(prepared.signal)]]):
                forward: Callable[[], object] = lambda: attachment.model(**batch.inputs, **pipeline.LAST_LOGITS)  # noqa: E731
                activations = kept_bytes(forward) * pipeline.recipe.training.batch_size
        except ModulateError as error:
            report.add("error", str(error))
    _memory(report, pipeline, modulation, activations)


def _memory(report: Report, pipeline: Pipeline, modulation: Modulation, activations: int) -> None:
    trained = {part for stage in pipeline.recipe.training.stages for part in stage.train}
    tuned = sum(p.numel() for name, p in modulation.named_parameters() if ("lora" if name.startswith("lora.") else "modulator") in trained)
    report.memory = {"host": _bytes(pipeline.model), "backbone": _bytes(pipeline.backbone), "modulation": _bytes(modulation) + 12 * tuned}
    if activations:
        report.memory["activations"] = activations
    parts = ", ".join(f"{name} {_mib(n)}" for name, n in report.memory.items())
    report.figures["memory, about"] = f"{_mib(sum(report.memory.values()))}: {parts}"
    how = "modulation with gradients and AdamW's two moments (fp32)"
    kept = "; activations: what one sample keeps for the backward, measured, × batch_size" if activations else "; activations not measured, there is no sample"
    report.add("info", f"The memory is estimated from weights as loaded, {how}{kept}. Transient buffers are not in it.")


def _parameters(report: Report, pipeline: Pipeline, modulation: Modulation) -> None:
    parts: dict[str, nn.Module | None] = {
        "host": pipeline.model, "backbone": pipeline.backbone, "encoder": modulation.encoder, "modulator": modulation.modulator,
        "output projections": modulation.out, "LoRA": modulation.lora,
    }  # fmt: skip
    report.parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
    report.figures["parameters"] = "\n".join(f"{n:>13,} {name}" for name, n in report.parameters.items())


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in [*module.parameters(), *module.buffers()])


def _mib(n: int) -> str:
    return f"{n / 2**20:,.0f} MiB"


# --- settings ---------------------------------------------------------------------------------------------------------------------------


def _settings(report: Report, recipe: Recipe, samples: dict[str, list[Sample]]) -> None:
    """Find settings that will have no effect, or cannot be met."""
    training, trained = recipe.training, {part for stage in recipe.training.stages for part in stage.train}
    if recipe.lora is not None and "lora" not in trained:
        report.add("warning", "`lora` is given, but no stage trains it: it stays at zero and changes nothing.")
    for stage in training.stages:
        if stage.lora_lr is not None and "lora" not in stage.train:
            report.add("warning", f"Stage {stage.name!r} has a lora_lr, but does not train lora.")
    if training.patience is not None and training.validate_every is None:
        report.add("warning", "`patience` has no effect without validation; set training.validate_every.")
    if training.augment and training.condition != "signal":
        report.add("info", f"`augment` has no effect: training under {training.condition!r} sees no signal.")
    if repeated := sorted({layer for layer in recipe.injection.layers if recipe.injection.layers.count(layer) > 1}):
        report.add("warning", f"injection.layers names layer {repeated[0]} more than once: it gets several residuals.")
    _steps(report, recipe, samples.get("train", []))


def _steps(report: Report, recipe: Recipe, samples: Sequence[Sample]) -> None:
    training, n = recipe.training, len(samples)
    if not n:
        return
    size = training.batch_size * training.accumulation
    if size > n:
        report.add("info", f"One optimiser step takes {size} samples, the training split has {n}: it goes through it more than once.")
    for stage in training.stages:
        steps = max(1, round(stage.epochs * math.ceil(n / size)))
        report.figures[f"stage {stage.name}"] = f"{steps} optimiser steps of {size} samples, training {' + '.join(stage.train)}"
        if training.warmup_steps > steps // 2:
            report.add("info", f"warmup_steps is {training.warmup_steps}, stage {stage.name!r} has {steps} steps: its warm-up is shortened to {steps // 2}.")
        if training.patience is not None and training.validate_every is not None and training.patience * training.validate_every >= stage.epochs:
            report.add(
                "warning",
                f"`patience` cannot stop stage {stage.name!r}: its {stage.epochs:g} epochs end before {training.patience} validations without progress.",
            )
