"""How long a recipe takes and how much memory it needs, measured on a few dozen steps, beside what
the check estimates.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from modulate.checks.check import examples
from modulate.checks.cost_model import Budget, any_signal, size_of
from modulate.checks.cost_report import estimate
from modulate.checks.coverage import Probes
from modulate.checks.dead_layers import AnySignal
from modulate.checks.settings import optimizer_steps
from modulate.checks.synthetic_data import NoiseDataset
from modulate.config.recipe import Recipe
from modulate.config.sections import Stage
from modulate.data.clip_shards import SPLITS
from modulate.errors import DataError, MissingFileError
from modulate.evaluation.evaluate import score
from modulate.hosts.hooks import patched_method
from modulate.inference.batching import batches_in_order
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import Sample
from modulate.modulation.modulated_host import ModulatedHost
from modulate.modulation.module import Modulation
from modulate.training.optimizer import Optimizer, accelerator_for
from modulate.training.train_step import TrainStep

WARM_UP = 2
"""First steps of a phase, which are not timed."""

KEPT = 2 << 30
"""Bytes of prepared samples that a pipeline keeps in memory."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing done ``n`` times: the median, and the bounds between which 80 % lie."""

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
    """One phase.

    ``seconds`` of one optimizer step, or of one batch of an evaluation, of ``samples``; ``peak``
    bytes alive, and those ``estimated``.
    """

    name: str
    seconds: Timing
    samples: int
    peak: int
    estimated: int

    @property
    def ratio(self) -> float:
        """The estimate over what was measured."""
        return self.estimated / self.peak


@dataclass
class Bench:
    """What was measured. ``made_up``: the clips were noise, because there are no data.

    ``first`` and ``again``: preparing a sample without and with its features in the cache.
    ``hours``: of the full run, by part; empty without data. ``without``: stores that the recipe
    asks for and that a few dozen steps cannot fill, so that every step is one of a first epoch.
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
        """Return all of it as JSON has it."""
        phases = [
            asdict(p) | {"ratio": p.ratio, "samples_per_second": p.samples / p.seconds.median}
            for p in self.phases
        ]
        return asdict(self) | {"phases": phases, "torch": torch.__version__}


def bench(
    recipe: Recipe,
    steps: int = 24,
    trust_remote_code: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Bench:
    """Train ``steps`` optimizer steps of every stage and evaluate as many batches, on the recipe's
    data or, without any, on clips of noise.

    Host and backbone are loaded as the recipe says: ``host.params.weights=random`` does without the
    hub. Nothing is left on disk.
    """
    trackers: dict[str, Any] = {"trackers": ()}
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=trackers)})
    with TemporaryDirectory() as scratch, ExitStack() as undo:
        folder = Path(scratch)
        tell("loading")
        pipeline = Pipeline(
            recipe, folder / "cache", memory_bytes=KEPT, trust_remote_code=trust_remote_code
        )
        every, made_up = _data(pipeline, folder, undo)
        size = recipe.training.batch_size * recipe.training.accumulation
        train = _spread(every["train"], (WARM_UP + steps) * size)
        test = _spread(every["test"], steps * recipe.evaluation.batch_size)
        tell(f"preparing {len(train)} samples")
        stores = tuple(
            name
            for name in ("vision_tower_cache_gib", "hidden_state_cache_gib")
            if getattr(recipe.features, name)
        )
        first, again = (Timing.of(_timed(pipeline, train, new)) for new in (True, False))
        found = Bench(recipe.name, _name(pipeline.device), made_up, first, again, without=stores)
        guess = estimate(
            recipe,
            folder,
            *examples(pipeline, {"train": train, "val": test}, Probes()),
            pipeline.device.type,
            trust_remote_code,
        )
        with _Session(pipeline, folder, made_up) as session:
            for k, stage in enumerate(recipe.training.stages):
                tell(f"stage {stage.name}")
                found.phases.append(session.stage(stage, train, steps, guess.stages[k].peak))
            tell("evaluation")
            found.phases.append(session.evaluation(test, guess))
        if not made_up:
            found.hours = _hours(
                found,
                recipe,
                {split: len(items) for split, items in every.items()},
                pipeline,
                train,
            )
        return found


class _Session:
    """A modulation attached to the host, in training."""

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
        """Bytes of weights."""
        return (
            size_of(self.pipeline.model)
            + size_of(self.pipeline.backbone)
            + size_of(self.modulation)
        )

    def stage(self, stage: Stage, samples: list[Sample], steps: int, estimated: int) -> Measured:
        """Train ``steps`` steps, each timed once its samples are prepared; the memory is that of
        the last.
        """
        optimizer = Optimizer.make(
            self.accelerator, self.modulation, stage, self.settings, WARM_UP + steps
        )
        failed: dict[str, str] = {}
        train_step = TrainStep(
            self.pipeline, self.accelerator, self.host, random.Random(0), failed, len(samples)
        )
        batches = _batches(samples, self.settings.batch_size)
        times = list[float]()
        moments = 0
        peak = _Peak(self.pipeline.device)
        for k in range(WARM_UP + steps):
            chosen = [next(batches) for _ in range(self.settings.accumulation)]
            for sample in (s for batch in chosen for s in batch):
                self.pipeline.prepare(sample, training=True)
            last = k == WARM_UP + steps - 1
            if last:
                moments = sum(
                    t.nbytes for state in optimizer.adamw.state.values() for t in state.values()
                )
            begun = _now(self.pipeline.device)
            with peak if last or self.pipeline.device.type == "cuda" else nullcontext():
                train_step.accumulate(chosen)
                optimizer.step(k, self.settings.clip_norm, True)
            if k >= WARM_UP and not (last and peak.slows and steps > 1):
                times.append(_now(self.pipeline.device) - begun)
        if failed:
            raise DataError(f"{len(failed)} samples failed: {next(iter(failed.values()))}")
        size = self.settings.batch_size * self.settings.accumulation
        return Measured(
            f"stage {stage.name}",
            Timing.of(times),
            size,
            peak.above(self.resident + moments),
            estimated,
        )

    def evaluation(self, samples: list[Sample], guess: Budget) -> Measured:
        """Answer all ``samples`` under their own signal, batch by batch."""
        size = self.pipeline.recipe.evaluation.batch_size
        times = list[float]()
        peak = _Peak(self.pipeline.device)
        self.modulation.eval()
        chunks = batches_in_order(samples, size)
        for chunk in [chunks[0], *chunks]:  # the first one twice: it warms up
            for sample in chunk:
                self.pipeline.prepare(sample)
            begun = _now(self.pipeline.device)
            score(self.pipeline, self.host.attachment, chunk, "signal")
            times.append(_now(self.pipeline.device) - begun)
        with peak:
            score(self.pipeline, self.host.attachment, chunks[0], "signal")
        return Measured(
            "evaluation",
            Timing.of(times[1:]),
            len(chunks[0]),
            peak.above(self.resident),
            guess.evaluation.peak,
        )


class _Peak:
    """Bytes alive at most inside its blocks: as torch's allocator on a GPU has them, or counted
    from every allocation on a CPU, which takes time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.slows = device.type != "cuda"
        self._found = 0
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
            self._found = max(self._found, most_alive(self._profile))
        else:
            self._found = max(self._found, torch.cuda.max_memory_allocated(self.device))

    def above(self, resident: int) -> int:
        """Return the peak, with what was there before: ``resident`` bytes, which a GPU's allocator
        has counted itself.
        """
        return self._found + (resident if self.slows else 0)


def most_alive(profile: Any) -> int:
    """Return the most bytes that were alive at once of those that a profile with ``profile_memory``
    saw allocated.
    """
    events = [
        (e.start_ns(), e.nbytes())
        for e in profile.profiler.kineto_results.events()
        if e.name() == "[memory]"
    ]
    alive = most = 0
    for _, n in sorted(events, key=lambda event: event[0]):
        alive += n
        most = max(most, alive)
    return most


# --- samples


def _data(
    pipeline: Pipeline, folder: Path, undo: ExitStack
) -> tuple[dict[str, list[Sample]], bool]:
    try:
        return {split: pipeline.samples(split) for split in SPLITS}, False
    except MissingFileError:
        noise: Any = NoiseDataset(pipeline.recipe, folder)
        pipeline.extractor.dataset = noise
        undo.enter_context(patched_method(pipeline.signals, "read", lambda sample: AnySignal()))
        return {split: noise.samples(split) for split in SPLITS}, True


def _spread(samples: Sequence[Sample], n: int) -> list[Sample]:
    """Return at most ``n`` samples, from all along the split."""
    if not samples:
        raise DataError("A split has no samples to measure with.")
    return [samples[i * len(samples) // n] for i in range(n)] if n < len(samples) else list(samples)


def _batches(samples: list[Sample], size: int) -> Iterator[list[Sample]]:
    """Yield batches without end, all of the same size."""
    k = 0
    while True:
        yield [samples[(k + i) % len(samples)] for i in range(size)]
        k += size


# --- time


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _timed(pipeline: Pipeline, samples: Sequence[Sample], training: bool) -> list[float]:
    """Prepare samples one by one; as training sees them first, as the evaluation does then: most of
    their features are in the cache by that time.
    """
    found = []
    for sample in samples:
        begun = _now(pipeline.device)
        pipeline.prepare(sample, training=training)
        found.append(_now(pipeline.device) - begun)
    return found


def _hours(
    found: Bench,
    recipe: Recipe,
    counts: dict[str, int],
    pipeline: Pipeline,
    prepared: Sequence[Sample],
) -> dict[str, float]:
    """Project the full run.

    Samples are prepared once if all of them fit into memory, else at every visit, features from the
    cache.
    """
    *stages, evaluation = found.phases
    size = recipe.training.batch_size * recipe.training.accumulation
    bytes_each = statistics.mean(
        sum(v.nbytes for v in pipeline.prepare(s, training=True).inputs.values())
        for s in prepared[:4]
    )
    steps = optimizer_steps(recipe, math.ceil(counts["train"] / recipe.training.batch_size))
    n = counts["train"] + counts["val"]
    again = 0.0 if n * bytes_each < KEPT else found.again.median
    each = evaluation.seconds.median / evaluation.samples
    every = recipe.training.validate_every
    rounds = (
        sum(max(1, int(stage.epochs // every)) for stage in recipe.training.stages) if every else 0
    )
    conditions = 1 + len(recipe.evaluation.conditions) + len(recipe.evaluation.inputs)
    seconds = {
        "features and first preparation": sum(counts.values()) * found.first.median,
        "training": sum(
            k * (stage.seconds.median + size * again)
            for k, stage in zip(steps, stages, strict=True)
        ),
        "validation": rounds * counts["val"] * (each + again),
        "evaluation": counts["test"] * conditions * (each + again),
    }
    return {name: value / 3600 for name, value in seconds.items()}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
