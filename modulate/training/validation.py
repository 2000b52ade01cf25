"""Validations during training: when they are due, and the accuracy that they find."""

from collections.abc import Callable

from modulate.evaluation.scoring import score, token_accuracy
from modulate.inference.pipeline import Pipeline
from modulate.modulation.attachment import Attachment
from modulate.training.optimizer_step import StagePlan
from modulate.training.trainer_state import TrainerState


class Validator:
    """Scores the validation split every so many optimizer steps, if the recipe asks for it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.settings = pipeline.recipe.training
        self.samples = pipeline.samples("val") if self.settings.validate_every else []

    def is_due(self, state: TrainerState, plan: StagePlan) -> bool:
        """Return whether the weights after the present step are to be validated, and are not yet.

        Those after a stage's last step always are: they may be its best.
        """
        if not self.samples or state.step <= state.validated:
            return False
        every = plan.steps_per_epoch * (self.settings.validate_every or 1)
        return state.step == plan.steps or state.step % every == 0

    def is_patience_exhausted(self, state: TrainerState) -> bool:
        """Return whether too many validations in a row have found no better weights."""
        return bool(self.settings.patience and state.stale >= self.settings.patience)

    def accuracy(self, attachment: Attachment, after_batch: Callable[[], None]) -> float:
        """Return the share of right answers under the condition that is trained.

        For answers in text, that of right tokens: see :func:`token_accuracy`. ``after_batch`` is
        called after each batch, and may raise to end the validation.
        """
        asked = (self.pipeline, attachment, self.samples, self.settings.condition)
        if self.pipeline.recipe.answer == "text":
            return token_accuracy(*asked, lambda n: after_batch())
        records = score(*asked, lambda n: after_batch())
        return sum(record.correct for record in records) / len(records)
