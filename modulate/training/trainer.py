"""Training of a run: its stages, with validations and checkpoints, on accelerate."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from modulate.config.sections import Stage
from modulate.distributed.launch import current
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import CheckpointError, Interrupted
from modulate.evaluation.scoring import require_scorable
from modulate.hosts.fsdp import refuse_out_of_step
from modulate.inference.pipeline import Pipeline
from modulate.interfaces.sample import Sample
from modulate.modulation.attachment import ModulatedHost
from modulate.modulation.module import Modulation
from modulate.runs.records import RunState
from modulate.runs.run import Run
from modulate.training.augmentation import Augmentation
from modulate.training.checkpointer import Checkpointer
from modulate.training.data_loader import FailedSamples, PrefetchLoader, training_samples
from modulate.training.epoch_sampler import EpochSampler, rank_batches
from modulate.training.loss import BatchLoss
from modulate.training.optimizer import Optimizer
from modulate.training.optimizer_step import OptimizerStep, StagePlan
from modulate.training.processes import accelerator_for, refuse_idle_processes
from modulate.training.train_step import TrainStep
from modulate.training.trainer_state import Snapshot, require_same_inputs
from modulate.training.training_log import Listener, TrainingLog
from modulate.training.validation import Validator
from modulate.utils.atomic_files import remove_partial
from modulate.utils.interrupts import StopRequest
from modulate.utils.library_warnings import show_library_warnings


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
        require_scorable(pipeline)
        if processes.is_main_process:
            if not resume:
                run.clear()
            remove_partial(run.folder)
        made_of = pipeline.fingerprints()
        state = _checked_state(run, made_of, processes)
        if state.finished and _has_intact_weights(run):
            if processes.is_main_process:
                run.checkpoints.keep(1)
            return Modulation.from_pretrained(run.weights)
        trainer = Trainer(run, pipeline, made_of, listener, stop or StopRequest())
        trainer.restore(notice)
        modulation = trainer.fit()
        if processes.is_main_process:
            _save_results(run, modulation, made_of, trainer.counts())
        processes.barrier()
        return modulation


def _checked_state(run: Run, made_of: dict[str, str], processes: ProcessGroup) -> RunState:
    """Return the run's state. Raises :class:`DataError` if its inputs changed, or differ by rank.

    ``made_of``: fingerprints of the inputs that there are now.
    """
    processes.require_equal("data, host or backbone", made_of)
    state = run.read_state()
    processes.require_equal("run in its folder", state.model_dump())
    if state.made_of is not None:
        require_same_inputs(run.folder, state.made_of, made_of)
    return state


def _has_intact_weights(run: Run) -> bool:
    """Return whether a finished run's weights are as training wrote them; if not, warn."""
    altered = run.altered()
    if altered:
        warnings.warn(
            f"{altered[0]} was changed since training wrote it; the modulation is made again"
            " from the last checkpoint.",
            stacklevel=3,
        )
    return not altered


def _save_results(
    run: Run, modulation: Modulation, made_of: dict[str, str], counts: dict[str, Any]
) -> None:
    modulation.save_pretrained(run.weights)
    # Written last: a run without it counts as unfinished, and its training continues.
    state = {"finished": True, "made_of": made_of, "weights": run.weight_hashes(), **counts}
    run.write_json("state.json", state)
    run.checkpoints.keep(1)


class Trainer:
    """Trains a run's modulation, stage by stage.

    Args:
        run: the run; its recipe says how to train.
        pipeline: prepares the samples, and has the host.
        made_of: fingerprints of data, host and backbone.
        listener: receives the progress of every optimizer step.
        stop: ends the training early.
    """

    def __init__(
        self,
        run: Run,
        pipeline: Pipeline,
        made_of: dict[str, str],
        listener: Listener,
        stop: StopRequest,
    ) -> None:
        recipe = run.recipe
        refuse_idle_processes(current(), recipe.training)
        refuse_out_of_step(recipe, current(), training=True)
        self.pipeline = pipeline
        self.stop = stop
        self.accelerator = accelerator_for(recipe, pipeline.device, run.folder)
        self.log = TrainingLog(run, self.accelerator, listener)
        self.checkpointer = Checkpointer(run, made_of, self.accelerator, self.log.lines)
        self.modulation = pipeline.fresh_modulation().to(pipeline.device)
        self.sampler = EpochSampler(
            training_samples(pipeline),
            recipe.training,
            recipe.seed,
            lambda sample: sum(len(pipeline.times(clip, training=True)) for clip in sample.clips),
        )
        self.validator = Validator(pipeline)
        self.snapshot = Snapshot.initial(recipe.seed)

    def restore(self, notify: Callable[[str], None]) -> None:
        """Continue from the run's last intact checkpoint, if it has one."""
        self.snapshot = self.checkpointer.restore(self.modulation, notify) or self.snapshot

    def counts(self) -> dict[str, Any]:
        """Return the training's counts, for state.json."""
        state = self.snapshot.state
        return {
            "steps": state.steps,
            "seconds": round(state.seconds, 1),
            "failed": state.failed,
            "left_out": len(self.pipeline.samples("train")) - len(self.sampler.samples),
            "skipped": state.skipped,
            "skipped_rows": dict(self.pipeline.dataset.skipped_rows()),
            "split_steps": state.split_steps,
            "unshared_batches": state.unshared_batches,
            "resumed": state.resumed,
        }

    def fit(self) -> Modulation:
        """Train the remaining stages; return the modulation detached, with its best weights.

        Without validations, these are the last ones.
        """
        host = ModulatedHost(self.modulation, self.pipeline.model)
        stages = self.pipeline.recipe.training.stages
        try:
            with self.pipeline.host_caches():
                for stage in stages[self.snapshot.state.stage :]:
                    self._train_stage(stage, host)
        finally:
            host.attachment.detach()
            self.log.close()
        return self.modulation.eval()

    def _train_stage(self, stage: Stage, host: ModulatedHost) -> None:
        settings = self.pipeline.recipe.training
        plan = self._plan(stage)
        optimizer = Optimizer.make(self.accelerator, self.modulation, stage, settings, plan.steps)
        optimizer.restore(self.snapshot.moments)
        prepare = partial(self.pipeline.prepare, training=True)
        with PrefetchLoader(prepare, settings.prefetch_batches) as loader:
            train_step = self._train_step(host, loader)
            step = OptimizerStep(plan, train_step, optimizer, self.snapshot.state, self.log)
            self._run_steps(step, host, loader.iterate(self._remaining_batches(stage)))
        self.snapshot.finish_stage(self.modulation)
        self.checkpointer.save(self.snapshot, self.modulation)
        self._agreed_stop().check()

    def _plan(self, stage: Stage) -> StagePlan:
        """Return how long a stage is. Raises :class:`CheckpointError` if it is past its end."""
        batches = len(self.sampler.epoch(stage.name, 0))
        plan = StagePlan.of(stage, batches, self.pipeline.recipe.training.accumulation)
        step = self.snapshot.state.step
        if step > plan.steps:
            raise CheckpointError(
                f"The checkpoint in {self.checkpointer.checkpoints.folder} is after step {step} of"
                f" the stage {stage.name!r}, which has {plan.steps}; start anew with --no-resume."
            )
        return plan

    def _train_step(self, host: ModulatedHost, loader: PrefetchLoader) -> TrainStep:
        recipe = self.pipeline.recipe
        processes = current()
        return TrainStep(
            BatchLoss(self.pipeline, self.accelerator, host),
            Augmentation(recipe.training, host.attachment.host, self.snapshot.rng, processes),
            FailedSamples(
                self.snapshot.state.failed,
                len(self.sampler.samples),
                recipe.evaluation.max_failed_share,
            ),
            loader.get,
            processes,
        )

    def _remaining_batches(self, stage: Stage) -> Iterator[list[Sample]]:
        """Yield this process's part of the batches that the stage has not trained on yet."""
        settings = self.pipeline.recipe.training
        done = self.snapshot.state.step * settings.accumulation
        return rank_batches(current(), settings, self.sampler.batches(stage.name, done))

    def _run_steps(
        self, step: OptimizerStep, host: ModulatedHost, batches: Iterator[list[Sample]]
    ) -> None:
        """Take the stage's remaining steps, with validations and checkpoints in between.

        Ends early when validations stop improving.
        """
        settings = self.pipeline.recipe.training
        state = self.snapshot.state
        plan = step.plan
        # Validated first: a training that stopped during a validation resumes with it.
        while True:
            if self.validator.is_due(state, plan):
                self._validate(step, host)
            if state.step == plan.steps or self.validator.is_patience_exhausted(state):
                break
            step.take([next(batches) for _ in range(settings.accumulation)])
            stop = self._agreed_stop()
            if stop.requested or state.step % settings.checkpoint_every == 0:
                self._save(step.optimizer)
            stop.check()

    def _validate(self, step: OptimizerStep, host: ModulatedHost) -> None:
        """Validate the present weights, and save a checkpoint, even if asked to stop meanwhile."""
        state = self.snapshot.state
        self.modulation.eval()
        try:
            accuracy = self.validator.accuracy(host.attachment, lambda: self._agreed_stop().check())
        except Interrupted:
            self._save(step.optimizer)
            raise
        self.log.validation(step.plan.stage.name, state.step, accuracy, state.steps)
        self.snapshot.record_validation(accuracy, self.modulation)
        self._save(step.optimizer)

    def _save(self, optimizer: Optimizer) -> None:
        self.snapshot.moments = optimizer.moments()
        self.checkpointer.save(self.snapshot, self.modulation)

    def _agreed_stop(self) -> StopRequest:
        """Return a stop request that is set in all processes if it is set in any."""
        return current().agree_on_stop(self.stop)
