"""One optimizer step of a stage: gradients of all processes, the step itself, and its report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modulate.config.sections import Stage
from modulate.errors import DivergedError
from modulate.interfaces.sample import Sample
from modulate.training.gradient_sync import reduce_step
from modulate.training.loss import StepStats
from modulate.training.optimizer import Optimizer
from modulate.training.train_step import TrainStep
from modulate.training.trainer_state import TrainerState
from modulate.training.training_log import Progress, TrainingLog


@dataclass(frozen=True)
class StagePlan:
    """How long a stage is: ``steps`` optimizer steps, of which an epoch has ``steps_per_epoch``."""

    stage: Stage
    steps: int
    steps_per_epoch: int

    @classmethod
    def of(cls, stage: Stage, batches_per_epoch: int, accumulation: int) -> "StagePlan":
        """Return the plan of a stage whose epochs have so many batches."""
        steps_per_epoch = math.ceil(batches_per_epoch / accumulation)
        return cls(stage, max(1, round(stage.epochs * steps_per_epoch)), steps_per_epoch)


class OptimizerStep:
    """Takes the optimizer steps of a stage.

    Args:
        plan: the stage, and its number of steps.
        train_step: computes the gradients of this process.
        optimizer: changes the parameters.
        state: progress and counts, updated in place.
        log: receives a report of every step.
    """

    def __init__(
        self,
        plan: StagePlan,
        train_step: TrainStep,
        optimizer: Optimizer,
        state: TrainerState,
        log: TrainingLog,
    ) -> None:
        self.plan = plan
        self.train_step = train_step
        self.settings = train_step.loss.settings
        self.optimizer = optimizer
        self.state = state
        self.log = log

    def take(self, batches: Sequence[Sequence[Sample]]) -> None:
        """Take one step on ``batches``, or skip it if its gradients are of no use.

        Raises :class:`DivergedError` after too many skipped steps in a row.
        """
        stats = self._gradients(batches)
        skipped, non_finite = self._update(stats)
        state = self.state
        state.count_step(skipped)
        state.split_steps += stats.split
        state.unshared_batches += stats.unshared_batches
        self.log.step(self._progress(stats, skipped), state.steps)
        if state.consecutive_skips >= self.settings.max_skipped_steps:
            raise DivergedError(diagnosis(self.plan.stage, state, stats, non_finite))

    def _gradients(self, batches: Sequence[Sequence[Sample]]) -> StepStats:
        """Leave the step's gradients, of all processes, on the parameters; return its totals."""
        modulation = self.optimizer.modulation
        modulation.train()
        self.train_step.failures.begin_step()
        return reduce_step(
            self.train_step.processes,
            self.optimizer.accelerator,
            self.train_step.accumulate(batches),
            self.train_step.failures,
            [p for p in modulation.parameters() if p.requires_grad],
        )

    def _update(self, stats: StepStats) -> tuple[str, list[str]]:
        """Take the step, if its gradients are usable.

        Returns why it was skipped, or "", and the parameters whose gradients are not finite.
        """
        if not stats.n:
            return "no_samples", []
        # Read before the step, which may lower it.
        is_scaled = self.optimizer.scale > 1
        usable = math.isfinite(stats.loss)
        non_finite = self.optimizer.step(self.state.step, self.settings.clip_norm, usable)
        if usable and not non_finite:
            return "", []
        # fp16 finds its scale by overflowing, so an overflow of scaled gradients is no divergence.
        return ("scaled" if usable and is_scaled else "not_finite"), non_finite

    def _progress(self, stats: StepStats, skipped: str) -> Progress:
        n = max(1, stats.n)
        return Progress(
            self.plan.stage.name,
            self.state.step,
            self.plan.steps,
            stats.loss / n if stats.n else math.nan,
            stats.correct / n,
            stats.active / n,
            self.optimizer.rate,
            skipped,
        )


def diagnosis(stage: Stage, state: TrainerState, stats: StepStats, non_finite: list[str]) -> str:
    """Return the error message of a training that diverged.

    ``stats``: of the last step. ``non_finite``: parameters whose gradients are not finite.
    """
    where = "Its gradients are finite"
    if non_finite:
        where = (
            f"Gradients are not finite in {len(non_finite)} parameters, among them"
            f" {', '.join(non_finite[:3])}"
        )
    return (
        f"Training diverged: {state.consecutive_skips} optimizer steps in a row had a loss or"
        f" gradients that are not finite. The last is step {state.step} of stage {stage.name!r}:"
        f" loss {stats.loss / stats.n} on {stats.n} samples, the first {', '.join(stats.ids[:3])}."
        f" {where}. Lower the learning rate {stage.lr:g}, look at these samples, or let"
        " training.max_skipped_steps allow more."
    )
