"""The loss of a training forward, and the gradients and counts that it adds to a step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from modulate.answers.likelihood import TokenScores
from modulate.config.sections import Training
from modulate.errors import DataError
from modulate.hosts.host import Host
from modulate.inference.answer_scorer import AnswerScorer
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import PreparedSample, ReadySample
from modulate.inference.shared_prefix import shared_prefix
from modulate.interfaces.sample import Sample
from modulate.modulation.attachment import ModulatedHost


@dataclass
class StepStats:
    """Totals of one optimizer step, summed over its samples.

    ``loss``: sum of the samples' losses. ``correct``: right answers; for answers in text, the sum
    of their shares of right tokens. ``active``: samples whose
    signal reached a token. ``ids``: the samples that took part. ``split``: whether a batch was
    computed in parts because memory was short. ``unshared_batches``: batches of one clip whose
    questions could not share a forward.
    """

    loss: float = 0.0
    correct: float = 0
    active: int = 0
    ids: list[str] = field(default_factory=list)
    split: bool = False
    unshared_batches: int = 0

    @property
    def n(self) -> int:
        """Number of samples that took part."""
        return len(self.ids)

    def add(self, other: "StepStats") -> None:
        """Add the totals of another part of the same step."""
        self.loss += other.loss
        self.correct += other.correct
        self.active += other.active
        self.ids += other.ids
        self.split = self.split or other.split
        self.unshared_batches += other.unshared_batches


def shared_length(prepared: Sequence[PreparedSample], host: Host, settings: Training) -> int:
    """Return how many leading positions these prompts share in one forward.

    0 for separate forwards, which is always so unless ``training.batch_by`` is clip.
    """
    if settings.batch_by != "clip":
        return 0
    return shared_prefix(prepared, list(host.visual_ids.values()))


class BatchLoss:
    """Forward and backward passes through a modulated host."""

    def __init__(self, pipeline: Pipeline, accelerator: Accelerator, host: ModulatedHost) -> None:
        self.pipeline = pipeline
        self.accelerator = accelerator
        self.host = host
        self.settings = pipeline.recipe.training
        self.scorer = AnswerScorer(pipeline, host.attachment.model, host.attachment.condition)

    def backward(self, samples: Sequence[ReadySample], total: float, stats: StepStats) -> None:
        """Add the gradient of these samples' part of a mean over ``total``, and their counts."""
        prepared = [sample for sample, _ in samples]
        shared = shared_length(prepared, self.host.attachment.host, self.settings)
        if self.settings.batch_by == "clip" and not shared and len(samples) > 1:
            stats.unshared_batches += 1
        for group in self.scorer.groups(samples, shared):
            self._backward(group, shared, total, stats)

    def _backward(
        self, samples: Sequence[ReadySample], shared: int, total: float, stats: StepStats
    ) -> None:
        with self.accelerator.autocast():
            loss, correct = (
                self._text(samples, shared) if self._is_text else self._options(samples, shared)
            )
        # Without a residual there is no gradient: with injection.empty: none, a batch whose
        # signals are all empty teaches nothing.
        if loss.requires_grad:
            self.accelerator.backward(loss * len(samples) / total)
        stats.loss += float(loss.detach()) * len(samples)
        stats.correct += correct
        rows = [clips for _, clips in samples]
        report = self.host.attachment.report()
        active = sum(n > 0 for n in report.active_by_row(rows[:1] if shared else rows))
        # A shared forward conditions one row for all of its questions.
        stats.active += active * len(samples) if shared else active
        stats.ids += [sample.sample.id for sample, _ in samples]

    @property
    def _is_text(self) -> bool:
        return self.pipeline.recipe.answer == "text"

    def _options(self, samples: Sequence[ReadySample], shared: int) -> tuple[Tensor, float]:
        """Return the mean loss of choosing options, and the number of right choices."""
        scores = self.scorer.option_scores(samples, shared)
        right = torch.tensor([right_option(sample.sample) for sample, _ in samples])
        right = right.to(scores.device)
        loss = smoothed_cross_entropy(scores, right, self.settings.label_smoothing)
        return loss, int((scores.argmax(1) == right).sum())

    def _text(self, samples: Sequence[ReadySample], shared: int) -> tuple[Tensor, float]:
        """Return the mean loss of the answers' texts, and the sum of their shares of right tokens.

        Every sample weighs alike, however long its answer is.
        """
        scores = self.scorer.token_scores(samples, shared)
        loss = text_loss(scores, self.settings.label_smoothing)
        shares = scores.is_top.sum(2) / scores.mask.sum(2)
        return loss, float(shares.sum())


def right_option(sample: Sample) -> int:
    """Return the index of the right option. Raises :class:`DataError` if it is not known."""
    if sample.answer is None:
        raise DataError("its right option is not known, so that it cannot be trained on.")
    return sample.answer


def text_loss(scores: TokenScores, smoothing: float) -> Tensor:
    """Return the mean over samples of the mean cross-entropy over an answer's tokens.

    ``scores``: of one answer to each sample. ``smoothing``: probability that is spread evenly over
    the vocabulary.
    """
    per_token = (1 - smoothing) * scores.log_probs + smoothing * scores.uniform
    return -(per_token.sum(2) / scores.mask.sum(2)).mean()


def smoothed_cross_entropy(logits: Tensor, answers: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross-entropy, smoothed over the options that each row offers.

    Args:
        logits: (sample, option); −inf where a sample offers no such option.
        answers: (sample,) index of the right option.
        smoothing: probability that is spread evenly over the offered options.
    """
    # Not `isfinite`: a NaN of the host must reach the loss, so that the step is skipped.
    offered = ~logits.isneginf()
    log_p = logits.log_softmax(1).masked_fill(~offered, 0.0)
    nll = -log_p.gather(1, answers[:, None])[:, 0]
    uniform = -log_p.sum(1) / offered.sum(1)
    return ((1 - smoothing) * nll + smoothing * uniform).mean()
