"""Measure a recipe's time and memory over a few dozen steps, and compare with the estimate."""

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from modulate.checks.cost_model import any_signal, size_of
from modulate.checks.cost_report import estimate
from modulate.checks.coverage import Probes
from modulate.checks.dead_layers import AnySignal
from modulate.checks.examples import examples
from modulate.checks.settings import optimizer_steps
from modulate.checks.synthetic_data import NoiseDataset
from modulate.config.recipe import Recipe
from modulate.config.sections import Stage
from modulate.data.clip_shards import SPLITS
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import DataError, MissingFileError
from modulate.evaluation.scoring import score
from modulate.hosts.hooks import patched_method
from modulate.inference.batching import batches_in_order
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.sample import Sample
from modulate.modulation.attachment import ModulatedHost
from modulate.modulation.module import Modulation
from modulate.training.augmentation import Augmentation
from modulate.training.data_loader import FailedSamples
from modulate.training.loss import BatchLoss
from modulate.training.optimizer import Optimizer
from modulate.training.processes import accelerator_for
from modulate.training.train_step import TrainStep

WARM_UP = 2
"""Untimed steps at the start of a phase: caches and kernels are cold then."""

SAMPLE_CACHE = 2 << 30
"""Bytes of prepared samples that the pipeline keeps in memory."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one operation, measured ``n`` times: the median and the central 80 % interval."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """Summarize measured times."""
        if len(seconds) < 2:
            return cls(seconds[0], seconds[0], seconds[0], 1)
        tenths = statistics.quantiles(seconds, n=10, method="inclusive")
        return cls(statistics.median(seconds), tenths[0], tenths[-1], len(seconds))


@dataclass(frozen=True)
class Measured:
    """The measurements of one phase of a run.

    ``seconds``: of one optimizer step, or one batch of an evaluation. ``samples``: how many that
    step or batch has. ``peak``: most bytes alive, weights included. ``estimated``: the estimate of
    ``peak`` by :mod:`modulate.checks.cost_model`.
    """

    name: str
    seconds: Timing
    samples: int
    peak: int
    estimated: int

    @property
    def ratio(self) -> float:
        """Estimated over measured memory."""
        return self.estimated / self.peak


@dataclass
class Bench:
    """The measurements of a recipe.

    ``made_up``: the clips were noise, because there are no data. ``first`` and ``again``: preparing
    a sample without and with its features in the cache. ``hours``: of the full run, by part; empty
    without data. ``without``: caches that the recipe enables but that a few dozen steps cannot
    fill, so every measured step is as slow as in the first epoch.
    """

    recipe: str
    device: str
    made_up: bool
    first: Timing
    again: Timing
    phases: list[Measured] = field(default_factory=list)
    hours: dict[str, float] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-serializable dictionary."""
        phases = []
        for phase in self.phases:
            derived = {
                "ratio": phase.ratio,
                "samples_per_second": phase.samples / phase.seconds.median,
            }
            phases.append(asdict(phase) | derived)
        return asdict(self) | {"phases": phases, "torch": torch.__version__}


def bench(
    recipe: Recipe,
    steps: int = 24,
    trust_remote_code: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> Bench:
    """Train ``steps`` optimizer steps of every stage and evaluate as many batches.

    Uses the recipe's data or, if there are none, clips of noise. Host and backbone are loaded as
    the recipe says; ``host.params.weights=random`` needs no download. Nothing is left on disk.
    ``notify`` receives a text at the start of each part.
    """
    # Trackers would report these steps to an experiment server as a run.
    trackers: dict[str, Any] = {"trackers": ()}
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=trackers)})
    with TemporaryDirectory() as scratch, ExitStack() as undo:
        folder = Path(scratch)
        notify("loading")
        pipeline = Pipeline(
            recipe, folder / "cache", memory_bytes=SAMPLE_CACHE, trust_remote_code=trust_remote_code
        )
        every, made_up = _data(pipeline, folder, undo)
        batch = recipe.training.batch_size * recipe.training.accumulation
        train = _spread(every["train"], (WARM_UP + steps) * batch)
        test = _spread(every["test"], steps * recipe.evaluation.batch_size)
        notify(f"preparing {len(train)} samples")
        result = _prepared(pipeline, train, made_up)
        training_clip, test_clip = examples(pipeline, {"train": train, "val": test}, Probes())
        estimated = estimate(
            recipe, folder, training_clip, test_clip, pipeline.device.type, trust_remote_code
        )
        with _Session(pipeline, folder, made_up) as session:
            for stage, phase in zip(recipe.training.stages, estimated.stages, strict=True):
                notify(f"stage {stage.name}")
                result.phases.append(session.stage(stage, train, steps, phase.peak))
            notify("evaluation")
            result.phases.append(session.evaluation(test, estimated.evaluation.peak))
        if not made_up:
            counts = {split: len(samples) for split, samples in every.items()}
            result.hours = _hours(result, recipe, counts, _keeps_all(pipeline, train, counts))
        return result


def _prepared(pipeline: Pipeline, samples: Sequence[Sample], made_up: bool) -> Bench:
    """Return a result with the times of preparing ``samples``."""
    recipe = pipeline.recipe
    without = tuple(
        name
        for name in ("vision_tower_cache_gib", "hidden_state_cache_gib")
        if getattr(recipe.features, name)
    )
    # First as in training, which fills the feature cache; then as in an evaluation, which finds
    # most features there.
    first = Timing.of(_timed(pipeline, samples, training=True))
    again = Timing.of(_timed(pipeline, samples, training=False))
    device = pipeline.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Bench(recipe.name, name, made_up, first, again, without=without)


class _Session:
    """A fresh modulation attached to the host, to measure training and evaluation."""

    def __init__(self, pipeline: Pipeline, folder: Path, made_up: bool) -> None:
        self.pipeline = pipeline
        self.settings = pipeline.recipe.training
        self.accelerator = accelerator_for(pipeline.recipe, pipeline.device, folder)
        self.modulation: Modulation = pipeline.fresh_modulation().to(pipeline.device)
        self.host = ModulatedHost(self.modulation, pipeline.model)
        self.stand_in: AbstractContextManager[None] = (
            any_signal(self.modulation, pipeline.device) if made_up else nullcontext()
        )

    def __enter__(self) -> "_Session":
        self.stand_in.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stand_in.__exit__(*error)
        self.host.attachment.detach()

    @property
    def resident(self) -> int:
        """Bytes of all weights."""
        return (
            size_of(self.pipeline.model)
            + size_of(self.pipeline.backbone)
            + size_of(self.modulation)
        )

    def stage(self, stage: Stage, samples: list[Sample], steps: int, estimated: int) -> Measured:
        """Train ``steps`` steps; time each without the preparation of its samples.

        On a CPU, memory is measured in the last step only, because the profiler slows it down.
        """
        optimizer = Optimizer.make(
            self.accelerator, self.modulation, stage, self.settings, WARM_UP + steps
        )
        max_share = self.pipeline.recipe.evaluation.max_failed_share
        failures = FailedSamples({}, len(samples), max_share)
        train_step = self._train_step(failures)
        batches = _batches(samples, self.settings.batch_size)
        device = self.pipeline.device
        peak = _Peak(device)
        times = list[float]()
        moments = 0
        for step in range(WARM_UP + steps):
            chosen = [next(batches) for _ in range(self.settings.accumulation)]
            # Prepared samples stay in memory, so the timed step does not prepare them again.
            for sample in chain.from_iterable(chosen):
                self.pipeline.prepare(sample, training=True)
            is_last = step == WARM_UP + steps - 1
            if is_last:
                moments = _size_of_moments(optimizer)
            start = _now(device)
            with peak if is_last or device.type == "cuda" else nullcontext():
                train_step.accumulate(chosen)
                optimizer.step(step, self.settings.clip_norm, True)
            # A step under the profiler is too slow to count, unless there is no other.
            slowed = is_last and peak.slows and steps > 1
            if step >= WARM_UP and not slowed:
                times.append(_now(device) - start)
        if failures.errors:
            first = next(iter(failures.errors.values()))
            raise DataError(f"{len(failures.errors)} samples failed: {first}")
        return Measured(
            f"stage {stage.name}",
            Timing.of(times),
            self.settings.batch_size * self.settings.accumulation,
            peak.above(self.resident + moments),
            estimated,
        )

    def _train_step(self, failures: FailedSamples) -> TrainStep:
        rng = random.Random(0)
        alone = ProcessGroup()
        return TrainStep(
            BatchLoss(self.pipeline, self.accelerator, self.host),
            Augmentation(self.settings, self.host.attachment.host, rng, alone),
            failures,
            partial(self.pipeline.prepare, training=True),
            alone,
        )

    def evaluation(self, samples: list[Sample], estimated: int) -> Measured:
        """Score all ``samples`` with their own signal, batch by batch."""
        device = self.pipeline.device
        times = list[float]()
        peak = _Peak(device)
        self.modulation.eval()
        batches = batches_in_order(samples, self.pipeline.recipe.evaluation.batch_size)
        # The first batch runs twice: once to warm up.
        for batch in [batches[0], *batches]:
            for sample in batch:
                self.pipeline.prepare(sample)
            start = _now(device)
            score(self.pipeline, self.host.attachment, batch, "signal")
            times.append(_now(device) - start)
        with peak:
            score(self.pipeline, self.host.attachment, batches[0], "signal")
        return Measured(
            "evaluation",
            Timing.of(times[1:]),
            len(batches[0]),
            peak.above(self.resident),
            estimated,
        )


def _size_of_moments(optimizer: Optimizer) -> int:
    """Return the bytes of AdamW's moments, which exist from its first step on."""
    states = optimizer.adamw.state.values()
    return sum(tensor.nbytes for state in states for tensor in state.values())


class _Peak:
    """The most bytes alive inside its ``with`` blocks.

    On a GPU, torch's allocator counts them. On a CPU, a profiler records every allocation, which
    slows the block down.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.slows = device.type != "cuda"
        self._most = 0
        self._profile: Any = None

    def __enter__(self) -> None:
        if self.slows:
            self._profile = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU],
                profile_memory=True,
                acc_events=True,
            )
            self._profile.__enter__()
        else:
            torch.cuda.reset_peak_memory_stats(self.device)

    def __exit__(self, *error: Any) -> None:
        if self.slows:
            self._profile.__exit__(*error)
            self._most = max(self._most, most_alive(self._profile))
        else:
            self._most = max(self._most, torch.cuda.max_memory_allocated(self.device))

    def above(self, resident: int) -> int:
        """Return the peak including ``resident`` bytes that were allocated before.

        A GPU's allocator has counted those itself.
        """
        return self._most + (resident if self.slows else 0)


def most_alive(profile: Any) -> int:
    """Return the most bytes alive at once among the allocations of a ``profile_memory`` profile."""
    events = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    alive = 0
    most = 0
    # A release is an event with a negative number of bytes.
    for _, size in sorted(events, key=lambda event: event[0]):
        alive += size
        most = max(most, alive)
    return most


# --- samples


def _data(
    pipeline: Pipeline, folder: Path, undo: ExitStack
) -> tuple[dict[str, list[Sample]], bool]:
    """Return samples by split, and whether they are noise because there are no data."""
    try:
        return {split: pipeline.samples(split) for split in SPLITS}, False
    except MissingFileError:
        noise: Any = NoiseDataset(pipeline.recipe, folder)
        pipeline.extractor.dataset = noise
        undo.enter_context(
            patched_method(pipeline.signals, "read", lambda sample, clip: AnySignal())
        )
        return {split: noise.samples(split) for split in SPLITS}, True


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return at most ``count`` samples, evenly spread over a split."""
    if not samples:
        raise DataError("A split has no samples to measure with. Check data.params.")
    if count >= len(samples):
        return list(samples)
    return [samples[index * len(samples) // count] for index in range(count)]


def _batches(samples: list[Sample], size: int) -> Iterator[list[Sample]]:
    """Yield batches of the same size without end."""
    start = 0
    while True:
        yield [samples[(start + index) % len(samples)] for index in range(size)]
        start += size


# --- time


def _now(device: torch.device) -> float:
    """Return the time in s, after all work queued on a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _timed(pipeline: Pipeline, samples: Sequence[Sample], training: bool) -> list[float]:
    """Prepare samples one by one, and return the seconds of each."""
    times = []
    for sample in samples:
        start = _now(pipeline.device)
        pipeline.prepare(sample, training=training)
        times.append(_now(pipeline.device) - start)
    return times


def _keeps_all(pipeline: Pipeline, prepared: Sequence[Sample], counts: Mapping[str, int]) -> bool:
    """Return whether the prepared samples of training and validation fit into memory."""
    sizes = []
    for sample in prepared[:4]:
        inputs = pipeline.prepare(sample, training=True).inputs
        sizes.append(sum(tensor.nbytes for tensor in inputs.values()))
    return (counts["train"] + counts["val"]) * statistics.mean(sizes) < SAMPLE_CACHE


def _hours(
    result: Bench, recipe: Recipe, counts: Mapping[str, int], keeps_all: bool
) -> dict[str, float]:
    """Project the hours of the full run from the measured phases.

    Every sample is prepared once if ``keeps_all``, else at every visit, with features from the
    cache.
    """
    training = recipe.training
    *stages, evaluation = result.phases
    batch = training.batch_size * training.accumulation
    again = 0.0 if keeps_all else result.again.median
    per_answer = evaluation.seconds.median / evaluation.samples + again
    training_seconds = 0.0
    steps = optimizer_steps(recipe, math.ceil(counts["train"] / training.batch_size))
    for count, stage in zip(steps, stages, strict=True):
        training_seconds += count * (stage.seconds.median + batch * again)
    rounds = 0
    if training.validate_every:
        for schedule in training.stages:
            rounds += max(1, int(schedule.epochs // training.validate_every))
    conditions = 1 + len(recipe.evaluation.conditions) + len(recipe.evaluation.inputs)
    seconds = {
        "features and first preparation": sum(counts.values()) * result.first.median,
        "training": training_seconds,
        "validation": rounds * counts["val"] * per_answer,
        "evaluation": counts["test"] * conditions * per_answer,
    }
    return {name: value / 3600 for name, value in seconds.items()}
