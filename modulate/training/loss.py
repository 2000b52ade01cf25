"""The loss of a training forward, and the gradients and counts that it adds to a step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from modulate.config.sections import Training
from modulate.hosts.host import Host
from modulate.inference.batching import LAST_LOGITS
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import PreparedSample, ReadySample
from modulate.inference.shared_prefix import shared_prefix, shared_prefix_forward
from modulate.modulation.attachment import ModulatedHost


@dataclass
class StepStats:
    """Totals of one optimizer step, summed over its samples.

    ``loss``: sum of the samples' losses. ``correct``: right answers. ``active``: samples whose
    signal reached a token. ``ids``: the samples that took part. ``split``: whether a batch was
    computed in parts because memory was short. ``unshared_batches``: batches of one clip whose
    questions could not share a forward.
    """

    loss: float = 0.0
    correct: int = 0
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

    def backward(self, samples: Sequence[ReadySample], total: float, stats: StepStats) -> None:
        """Add the gradient of these samples' part of a mean over ``total``, and their counts."""
        prepared = [sample for sample, _ in samples]
        shared = shared_length(prepared, self.host.attachment.host, self.settings)
        if self.settings.batch_by == "clip" and not shared and len(samples) > 1:
            stats.unshared_batches += 1
        # With a shared prefix, `shared_prefix_forward` builds the inputs itself.
        batch = self.pipeline.collate(prepared, with_inputs=not shared)
        with self.accelerator.autocast():
            output = self._forward(samples, batch.inputs, shared)
        logits = batch.option_logits(output)
        loss = smoothed_cross_entropy(logits, batch.answers, self.settings.label_smoothing)
        # Without a residual there is no gradient: with injection.empty: none, a batch whose
        # signals are all empty teaches nothing.
        if loss.requires_grad:
            self.accelerator.backward(loss * len(samples) / total)
        stats.loss += float(loss.detach()) * len(samples)
        stats.correct += int((logits.argmax(1) == batch.answers).sum())
        active = sum(steps > 0 for steps in self.host.attachment.report().active_steps)
        # A shared forward conditions one row for all of its questions.
        stats.active += active * len(samples) if shared else active
        stats.ids += [sample.sample.id for sample in prepared]

    def _forward(
        self, samples: Sequence[ReadySample], inputs: dict[str, Tensor], shared: int
    ) -> Any:
        """Return the host's output, with the clip computed once if ``shared`` is not 0."""
        if not shared:
            return self.host([clips for _, clips in samples], **inputs, **LAST_LOGITS)
        prepared = [sample for sample, _ in samples]
        _, clips = samples[0]
        return shared_prefix_forward(self.host, self.host.attachment.model, prepared, clips, shared)


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
