"""The training loop: stages, validation and checkpoints, on accelerate."""

import json
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import Tensor

from modulate.config.sections import Stage
from modulate.data.feature_cache import weights_digest
from modulate.distributed.launch import current
from modulate.errors import CheckpointError, DivergedError, Interrupted
from modulate.evaluation.evaluate import score
from modulate.hosts.fsdp import refuse_out_of_step
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.components import Sample
from modulate.modulation.attachment import ModulatedHost
from modulate.modulation.module import Modulation
from modulate.runs.run import Run
from modulate.training.data_loader import PrefetchLoader, arranged, training_samples
from modulate.training.gradient_sync import add_up, check_size, own_part
from modulate.training.optimizer import Optimizer, accelerator_for
from modulate.training.train_step import StepStats, TrainStep, diagnosis
from modulate.training.trainer_state import Snapshot, TrainerState, notes_of, refuse_other
from modulate.utils.atomic_files import LineWriter, remove_partial
from modulate.utils.interrupts import StopRequest
from modulate.utils.library_warnings import show_library_warnings


@dataclass
class Progress:
    """What a progress display receives after every optimizer step.

    ``loss``: NaN if no sample took part. ``active``: share of samples whose signal reached a token.
    ``skipped``: why the step was skipped, or "".
    """

    stage: str
    step: int
    steps: int
    loss: float
    accuracy: float
    active: float
    lr: float
    skipped: str = ""


Listener = Callable[[Progress], None]


@show_library_warnings()
def train(
    run: Run,
    pipeline: Pipeline,
    listener: Listener = lambda progress: None,
    *,
    resume: bool = True,
    stop: StopRequest | None = None,
    notice: Callable[[str], None] = lambda text: None,
) -> Modulation:
    """Train a run's recipe, save the weights in its folder, and return the modulation.

    A finished run is loaded. An unfinished one continues from its last checkpoint, to the same
    weights as without the interruption; with ``resume`` False, its results are removed first.
    ``stop`` can end the training early; ``notice`` receives a line that says where it continues.

    One of several processes computes its part of every step. Weights and log are those of a single
    process up to rounding, and rank 0 writes them.

    Raises :class:`DataError` if data, host or backbone differ from those that the run began with,
    or if too many samples fail; :class:`DivergedError`, :class:`Interrupted`, :class:`LockedError`,
    :class:`StorageError` and :class:`RankError`.
    """
    processes = current()
    with processes.fail_together(), run.locked():
        pipeline.build_deferred()  # An input that cannot be built fails now, not after training.
        if processes.is_main_process:
            if not resume:
                run.clear()
            remove_partial(run.folder)
        made_of = pipeline.fingerprints()
        processes.require_equal("data, host or backbone", made_of)
        state = run.read_state()
        processes.require_equal("run in its folder", state.model_dump())
        refuse_other(run.folder, made_of if state.made_of is None else state.made_of, made_of)
        if state.finished:
            altered = run.altered()
            if not altered:
                if processes.is_main_process:
                    run.checkpoints.keep(1)
                return Modulation.from_pretrained(run.weights)
            warnings.warn(
                f"{altered[0]} was changed since training wrote it; the modulation is made again"
                " from the last checkpoint.",
                stacklevel=2,
            )
        trainer = Trainer(run, pipeline, made_of, listener, stop or StopRequest())
        trainer.restore(notice)
        modulation = trainer.fit()
        if processes.is_main_process:
            modulation.save_pretrained(run.weights)
            run.write_json(
                "state.json",
                {
                    "finished": True,
                    "made_of": made_of,
                    "weights": run.weight_hashes(),
                    **trainer.account(),
                },
            )
            trainer.checkpoints.keep(1)
        processes.barrier()
        return modulation


class Trainer:
    """One training of a run: its modulation, progress, optimizer and checkpoints."""

    def __init__(
        self,
        run: Run,
        pipeline: Pipeline,
        made_of: dict[str, str],
        listener: Listener,
        stop: StopRequest,
    ) -> None:
        self.recipe = run.recipe
        self.pipeline = pipeline
        self.made_of = made_of
        self.listener = listener
        self.stop = stop
        self.settings = run.recipe.training
        self.processes = current()
        check_size(self.processes, self.settings)
        refuse_out_of_step(self.recipe, self.processes, training=True)
        self.log = LineWriter(run.folder / "log.jsonl")
        self.checkpoints = run.checkpoints
        self.accelerator = accelerator_for(run.recipe, pipeline.device, run.folder)
        if self.settings.trackers:
            self.accelerator.init_trackers(run.recipe.name)
        self.modulation = pipeline.fresh_modulation().to(pipeline.device)
        self.samples, self.left_out = training_samples(pipeline)
        self.validation = pipeline.samples("val") if self.settings.validate_every else []
        self.state = TrainerState()
        self.rng = random.Random(run.recipe.seed)
        self.best: dict[str, Tensor] = {}
        self.optimizer: Optimizer | None = None
        self._moments: dict[
            str, Tensor
        ] = {}  # From a checkpoint, until its stage's optimizer exists.
        self._since = time.monotonic()

    def account(self) -> dict[str, Any]:
        """Return the training's counts for state.json."""
        state = self.state
        counts = {
            "failed": state.failed,
            "left_out": self.left_out,
            "skipped": state.skipped,
            "split_steps": state.split_steps,
            "apart": state.apart,
            "resumed": state.resumed,
        }
        return {"steps": state.steps, "seconds": round(state.seconds, 1), **counts}

    def fit(self) -> Modulation:
        """Run the remaining stages and return the best (or last) modulation, detached."""
        host = ModulatedHost(self.modulation, self.pipeline.model)
        try:
            with self.pipeline.host_caches():
                while self.state.stage < len(self.settings.stages):
                    self._stage(self.settings.stages[self.state.stage], host)
        finally:
            host.attachment.detach()
            for tracker in self.accelerator.trackers:
                tracker.finish()
        return self.modulation.eval()

    # --- one stage

    def _stage(self, stage: Stage, host: ModulatedHost) -> None:
        settings = self.settings
        state = self.state
        per_epoch = math.ceil(len(self._epoch(stage.name, 0)) / settings.accumulation)
        steps = max(1, round(stage.epochs * per_epoch))
        if state.step > steps:
            raise CheckpointError(
                f"The checkpoint in {self.checkpoints.folder} is after step {state.step} of the"
                f" stage {stage.name!r}, which has {steps}; start anew with --no-resume."
            )
        every = per_epoch * (settings.validate_every or 1)
        self.optimizer = Optimizer.make(self.accelerator, self.modulation, stage, settings, steps)
        self.optimizer.restore(self._moments)
        with PrefetchLoader(
            partial(self.pipeline.prepare, training=True), settings.prefetch_batches
        ) as loader:
            batches = loader.over(self._batches(stage.name, state.step * settings.accumulation))
            train_step = TrainStep(
                self.pipeline,
                self.accelerator,
                host,
                self.rng,
                state.failed,
                len(self.samples),
                loader.get,
                self.processes,
            )
            self._steps(stage, host, steps, every, batches, train_step)
        if self.best:
            self.modulation.load_state_dict(self.best)
        state.stage += 1
        state.step = 0
        state.validated = 0
        state.best = -1.0
        state.stale = 0
        self.best = {}
        self.optimizer = None
        self._moments = {}
        self._save()
        self.processes.agree_on_stop(self.stop).check()

    def _steps(
        self,
        stage: Stage,
        host: ModulatedHost,
        steps: int,
        every: int,
        batches: Iterator[list[Sample]],
        train_step: TrainStep,
    ) -> None:
        """Run the stage's remaining steps, with a validation after every ``every`` steps.

        Ends early when patience is exhausted.
        """
        settings = self.settings
        state = self.state
        while True:
            if (
                self.validation
                and state.step > state.validated
                and (state.step == steps or state.step % every == 0)
            ):
                self._validate(stage, host)
                self._save()
            if state.step == steps or (settings.patience and state.stale >= settings.patience):
                break
            self._step(
                stage, steps, [next(batches) for _ in range(settings.accumulation)], train_step
            )
            stop = self.processes.agree_on_stop(self.stop)
            if stop.requested or state.step % settings.checkpoint_every == 0:
                self._save()
            stop.check()

    def _batches(self, stage: str, skip: int) -> Iterator[list[Sample]]:
        """Yield this process's part of the stage's batches endlessly, from the ``skip``-th on.

        Each epoch has its own order.
        """
        whole = self._all_batches(stage, skip)
        return whole if self.processes.size == 1 else own_part(self.processes, self.settings, whole)

    def _all_batches(self, stage: str, skip: int) -> Iterator[list[Sample]]:
        epoch, first = divmod(skip, len(self._epoch(stage, 0)))
        while True:
            yield from self._epoch(stage, epoch)[first:]
            epoch += 1
            first = 0

    def _epoch(self, stage: str, epoch: int) -> list[list[Sample]]:
        """Return the batches of an epoch; every epoch has the same number of them."""
        rng = random.Random(f"{self.recipe.seed}:{stage}:{epoch}")
        return arranged(
            self.samples,
            self.settings.batch_size,
            self.settings.batch_by,
            rng,
            lambda s: len(self.pipeline.times(s, training=True)),
        )

    def _step(
        self, stage: Stage, steps: int, batches: list[list[Sample]], train_step: TrainStep
    ) -> None:
        state = self.state
        before = len(self.state.failed)
        self.modulation.train()
        stats = train_step.accumulate(batches)
        stats = add_up(
            self.processes,
            self.accelerator,
            train_step,
            stats,
            before,
            [p for p in self.modulation.parameters() if p.requires_grad],
        )
        skipped, wrong = self._update(stats)
        state.step += 1
        state.steps += 1
        state.split_steps += stats.split
        state.apart += stats.apart
        state.in_a_row = state.in_a_row + 1 if skipped == "not_finite" else 0
        if skipped:
            state.skipped[skipped] = state.skipped.get(skipped, 0) + 1
        self._report(stage, steps, stats, skipped)
        if state.in_a_row >= self.settings.max_skipped_steps:
            raise DivergedError(diagnosis(stage, state, stats, wrong))

    def _update(self, stats: StepStats) -> tuple[str, list[str]]:
        """Take an optimizer step.

        Return why it was skipped, or "", and the parameters whose gradients are not finite.
        """
        assert self.optimizer is not None
        if not stats.n:
            return "no_samples", []
        scale = self.optimizer.scale
        usable = math.isfinite(stats.loss)
        wrong = self.optimizer.step(self.state.step, self.settings.clip_norm, usable)
        if usable and not wrong:
            return "", []
        # fp16's scaler finds its scale by overflowing: not a fault of the training.
        return ("scaled" if usable and scale > 1 else "not_finite"), wrong

    def _validate(self, stage: Stage, host: ModulatedHost) -> None:
        state = self.state
        self.modulation.eval()
        try:
            records = score(
                self.pipeline,
                host.attachment,
                self.validation,
                self.settings.condition,
                lambda n: self.processes.agree_on_stop(self.stop).check(),
            )
        except Interrupted:
            self._save()
            raise
        accuracy = sum(r.correct for r in records) / len(records)
        self._log({"stage": stage.name, "step": state.step, "validation_accuracy": accuracy})
        state.validated = state.step
        if accuracy >= state.best:
            state.best = accuracy
            state.stale = 0
            self.best = {k: v.detach().clone() for k, v in self.modulation.state_dict().items()}
        else:
            state.stale += 1

    def _report(self, stage: Stage, steps: int, stats: StepStats, skipped: str) -> None:
        assert self.optimizer is not None
        n = max(1, stats.n)
        loss = stats.loss / n if stats.n else math.nan
        progress = Progress(
            stage.name,
            self.state.step,
            steps,
            loss,
            stats.right / n,
            stats.active / n,
            self.optimizer.rate,
            skipped,
        )
        self._log({k: v for k, v in asdict(progress).items() if k != "skipped" or v})
        self.listener(progress)

    def _log(self, record: dict[str, Any]) -> None:
        if not self.processes.is_main_process:
            return
        plain = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in record.items()
        }  # JSON has no NaN
        self.log.append(json.dumps(plain, allow_nan=False))
        if self.settings.trackers:
            self.accelerator.log(
                {k: v for k, v in plain.items() if isinstance(v, int | float)},
                step=self.state.steps,
            )

    # --- checkpoints

    def _save(self) -> None:
        if self.processes.size > 1:
            digest = weights_digest(self.modulation)
            self.processes.require_equal("modulation at a checkpoint", digest)
        if not self.processes.is_main_process:
            return
        state = self.state
        now = time.monotonic()
        state.seconds += now - self._since
        self._since = now
        state.lines = self.log.count
        moments = self.optimizer.state() if self.optimizer else {}
        notes, tensors = Snapshot(
            state, self.modulation.state_dict(), self.best, moments, self.rng
        ).pack(self.accelerator)
        self.log.flush()
        self.checkpoints.save({"made_of": self.made_of, **notes}, tensors)

    def restore(self, notice: Callable[[str], None]) -> None:
        """Restore the last intact checkpoint, or begin at the start.

        Rank 0 removes damaged checkpoints before the other processes read.
        """
        found = self.checkpoints.latest() if self.processes.is_main_process else None
        self.processes.barrier()
        found = found if self.processes.is_main_process else self.checkpoints.latest()
        notes = notes_of(found, self.checkpoints.folder) if found else None
        self.processes.require_equal("checkpoint, or none", notes and asdict(notes.state))
        if found is None or notes is None:
            if self.processes.is_main_process:
                self.log.cut(0)
            return
        refuse_other(self.log.path.parent, notes.made_of, self.made_of)
        then = Snapshot.unpack(found, notes, self.accelerator)
        self.state = then.state
        self.rng = then.rng
        self._moments = then.moments
        self.best = {k: v.to(self.pipeline.device) for k, v in then.best.items()}
        then.load_into(self.modulation)
        if self.processes.is_main_process and (missing := self.log.cut(then.state.lines)):
            warnings.warn(
                f"{self.log.path} lacks {missing} lines that were written before the checkpoint;"
                " the training itself lacks nothing.",
                stacklevel=2,
            )
        self.state.resumed.append(self.state.steps)
        if self.processes.is_main_process:
            notice(
                f"Continuing after optimizer step {self.state.steps}, from"
                f" {self.checkpoints.folder}."
            )
