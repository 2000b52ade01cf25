"""Training: stages, validation, checkpoints. A short loop of our own on accelerate."""

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
    """What a progress display is told after every optimizer step. ``active``: share of samples in
    which the signal reached a token.

    ``loss`` is NaN when no sample took part. ``skipped``: why no step was taken, "" when one was.
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
    """Train a run's recipe, leave the weights in its folder, and return the modulation.

    A finished run is loaded, an unfinished one continued from its last checkpoint, to the same
    weights as if it had never ended. Not with ``resume`` False: then whatever the run has is
    removed first. ``stop`` may ask the training to end early; ``notice`` is told where it
    continues.

    Started as one of several processes, it does its part of every step: weights and log are those
    of one process up to rounding, and the first process writes them.

    Raises :class:`DataError` when data, host or backbone are not those that the run began with, or
    too many samples fail; :class:`DivergedError`; :class:`Interrupted`; :class:`LockedError`;
    :class:`StorageError`; :class:`RankError`.
    """
    processes = current()
    with processes.fail_together(), run.locked():
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
    """One training: holds the modulation, the state and what it is saved by."""

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
        ] = {}  # of a checkpoint, until its stage's optimizer is there
        self._since = time.monotonic()

    def account(self) -> dict[str, Any]:
        """Return what state.json says of a training."""
        at = self.state
        counts = {
            "failed": at.failed,
            "left_out": self.left_out,
            "skipped": at.skipped,
            "split_steps": at.split_steps,
            "apart": at.apart,
            "resumed": at.resumed,
        }
        return {"steps": at.steps, "seconds": round(at.seconds, 1), **counts}

    def fit(self) -> Modulation:
        """Run every stage that is left and return the best (or last) modulation, detached."""
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
        at = self.state
        per_epoch = math.ceil(len(self._epoch(stage.name, 0)) / settings.accumulation)
        steps = max(1, round(stage.epochs * per_epoch))
        if at.step > steps:
            raise CheckpointError(
                f"The checkpoint in {self.checkpoints.folder} is after step {at.step} of the stage"
                f" {stage.name!r}, which has {steps}; start anew with --no-resume."
            )
        every = per_epoch * (settings.validate_every or 1)
        self.optimizer = Optimizer.make(self.accelerator, self.modulation, stage, settings, steps)
        self.optimizer.restore(self._moments)
        with PrefetchLoader(
            partial(self.pipeline.prepare, training=True), settings.prefetch_batches
        ) as loader:
            batches = loader.over(self._batches(stage.name, at.step * settings.accumulation))
            train_step = TrainStep(
                self.pipeline,
                self.accelerator,
                host,
                self.rng,
                at.failed,
                len(self.samples),
                loader.get,
                self.processes,
            )
            self._steps(stage, host, steps, every, batches, train_step)
        if self.best:
            self.modulation.load_state_dict(self.best)
        at.stage = at.stage + 1
        at.step = 0
        at.validated = 0
        at.best = -1.0
        at.stale = 0
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
        """Take a stage's steps that are left, with a validation after ``every`` of them; until the
        last, or patience ends.
        """
        settings = self.settings
        at = self.state
        while True:
            if (
                self.validation
                and at.step > at.validated
                and (at.step == steps or at.step % every == 0)
            ):
                self._validate(stage, host)
                self._save()
            if at.step == steps or (settings.patience and at.stale >= settings.patience):
                break
            self._step(
                stage, steps, [next(batches) for _ in range(settings.accumulation)], train_step
            )
            stop = self.processes.agree_on_stop(self.stop)
            if stop.requested or at.step % settings.checkpoint_every == 0:
                self._save()
            stop.check()

    def _batches(self, stage: str, skip: int) -> Iterator[list[Sample]]:
        """Yield the stage's batches without end, each epoch in an order of its own, from the
        ``skip``-th on; of several processes, each its part of them.
        """
        whole = self._all_batches(stage, skip)
        return whole if self.processes.size == 1 else own_part(self.processes, self.settings, whole)

    def _all_batches(self, stage: str, skip: int) -> Iterator[list[Sample]]:
        epoch, first = divmod(skip, len(self._epoch(stage, 0)))
        while True:
            yield from self._epoch(stage, epoch)[first:]
            epoch = epoch + 1
            first = 0

    def _epoch(self, stage: str, epoch: int) -> list[list[Sample]]:
        """Return the batches of an epoch; their number is the same in all of them."""
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
        at = self.state
        before = len(self.state.failed)
        self.modulation.train()
        tally = train_step.accumulate(batches)
        tally = add_up(
            self.processes,
            self.accelerator,
            train_step,
            tally,
            before,
            [p for p in self.modulation.parameters() if p.requires_grad],
        )
        skipped, wrong = self._update(tally)
        at.step = at.step + 1
        at.steps = at.steps + 1
        at.split_steps = at.split_steps + tally.split
        at.apart = at.apart + tally.apart
        at.in_a_row = at.in_a_row + 1 if skipped == "not_finite" else 0
        if skipped:
            at.skipped[skipped] = at.skipped.get(skipped, 0) + 1
        self._report(stage, steps, tally, skipped)
        if at.in_a_row >= self.settings.max_skipped_steps:
            raise DivergedError(diagnosis(stage, at, tally, wrong))

    def _update(self, tally: StepStats) -> tuple[str, list[str]]:
        """Take an optimizer step; return why none was taken, if so, and whose gradients are not
        finite.
        """
        assert self.optimizer is not None
        if not tally.n:
            return "no_samples", []
        scale = self.optimizer.scale
        usable = math.isfinite(tally.loss)
        wrong = self.optimizer.step(self.state.step, self.settings.clip_norm, usable)
        if usable and not wrong:
            return "", []
        # fp16 finds its scale by overflowing, which is no fault of the training
        return ("scaled" if usable and scale > 1 else "not_finite"), wrong

    def _validate(self, stage: Stage, host: ModulatedHost) -> None:
        at = self.state
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
        self._log({"stage": stage.name, "step": at.step, "validation_accuracy": accuracy})
        at.validated = at.step
        if accuracy >= at.best:
            at.best = accuracy
            at.stale = 0
            self.best = {k: v.detach().clone() for k, v in self.modulation.state_dict().items()}
        else:
            at.stale += 1

    def _report(self, stage: Stage, steps: int, tally: StepStats, skipped: str) -> None:
        assert self.optimizer is not None
        n = max(1, tally.n)
        loss = tally.loss / n if tally.n else math.nan
        progress = Progress(
            stage.name,
            self.state.step,
            steps,
            loss,
            tally.right / n,
            tally.active / n,
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
        at = self.state
        now = time.monotonic()
        at.seconds = at.seconds + now - self._since
        self._since = now
        at.lines = self.log.count
        moments = self.optimizer.state() if self.optimizer else {}
        notes, tensors = Snapshot(
            at, self.modulation.state_dict(), self.best, moments, self.rng
        ).pack(self.accelerator)
        self.log.flush()
        self.checkpoints.save({"made_of": self.made_of, **notes}, tensors)

    def restore(self, notice: Callable[[str], None]) -> None:
        """Go to where the last whole checkpoint is, or to the start; of several processes the first
        one removes what is damaged before the others read.
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
