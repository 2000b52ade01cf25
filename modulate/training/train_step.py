"""The gradients of one optimizer step: samples are prepared and conditioned, then run."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from modulate.data.feature_extractor import catch_sample_error
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import DataError, ModulateError
from modulate.hosts.fsdp import in_step
from modulate.inference.preparation import PreparedSample, ReadySample
from modulate.interfaces.sample import Sample
from modulate.training.augmentation import Augmentation
from modulate.training.data_loader import FailedSamples
from modulate.training.gradient_checkpointing import checkpointed_layers
from modulate.training.loss import BatchLoss, StepStats, right_option
from modulate.utils.out_of_memory import first_line, free_cached_memory, is_out_of_memory


class TrainStep:
    """Leaves the gradients of an optimizer step on the parameters of a modulated host.

    Args:
        loss: runs the forward and backward passes.
        augmentation: chooses the clips that condition each sample.
        failures: records the samples that cannot be used.
        prepare: prepares a sample; usually from a loader that does so ahead of time.
        processes: the processes that share the step. This one computes its own batches only.
    """

    def __init__(
        self,
        loss: BatchLoss,
        augmentation: Augmentation,
        failures: FailedSamples,
        prepare: Callable[[Sample], PreparedSample],
        processes: ProcessGroup,
    ) -> None:
        self.loss = loss
        self.augmentation = augmentation
        self.failures = failures
        self.prepare = prepare
        self.processes = processes

    def accumulate(self, batches: Sequence[Sequence[Sample]]) -> StepStats:
        """Run forward and backward passes over ``batches`` and return their totals.

        The gradient is that of the mean loss over all their samples, however they are divided.
        Raises :class:`DataError` if more samples fail than the recipe allows.
        """
        ready = self.augmentation.condition([self._prepare_batch(batch) for batch in batches])
        checkpointing = self.loss.settings.gradient_checkpointing
        with checkpointed_layers(self.loss.pipeline.host, checkpointing):
            if self.processes.shards:
                return run_in_lockstep(self.loss, self.processes, [b for b in ready if b])
            return run_within_memory(self.loss, self.failures, ready)

    def _prepare_batch(self, samples: Sequence[Sample]) -> list[PreparedSample]:
        """Return the samples that can be prepared, and record the others as failed."""
        prepared = []
        for sample in samples:
            found = catch_sample_error(partial(self._prepare, sample), f"Sample {sample.id}: ")
            if isinstance(found, ModulateError):
                self.failures.add(sample, found)
            else:
                prepared.append(found)
        return prepared

    def _prepare(self, sample: Sample) -> PreparedSample:
        if sample.options and self.loss.pipeline.recipe.answer != "text":
            right_option(sample)
        return self.prepare(sample)


# --- whole batches, or parts of them that fit into memory


class _Overflow(NamedTuple):
    """The samples of a pass that ran out of memory, and torch's message."""

    samples: list[ReadySample]
    message: str


def run_within_memory(
    loss: BatchLoss, failures: FailedSamples, batches: list[list[ReadySample]]
) -> StepStats:
    """Run ``batches`` whole or, if they do not fit into memory, in ever smaller parts.

    A sample that does not fit even alone is recorded as failed and left out.
    """
    size = max(1, *map(len, batches))
    stats = StepStats()
    while overflow := _attempt(loss, batches, size, stats):
        # The whole step starts anew: an interrupted backward leaves gradients of some layers only.
        loss.host.zero_grad()
        free_cached_memory()
        stats = StepStats(split=True)
        if len(overflow.samples) > 1:
            size = len(overflow.samples) // 2
            _warn_of_split(overflow, size)
        else:
            sample = overflow.samples[0][0].sample
            batches = [[s for s in batch if s[0].sample.id != sample.id] for batch in batches]
            failures.add(sample, _does_not_fit(sample, overflow.message))
    return stats


def _attempt(
    loss: BatchLoss, batches: list[list[ReadySample]], size: int, stats: StepStats
) -> _Overflow | None:
    """Run all batches, at most ``size`` samples at once, until one does not fit into memory."""
    total = sum(map(len, batches))
    for batch in batches:
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            try:
                loss.backward(part, total, stats)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                return _Overflow(part, first_line(error))
    return None


def _warn_of_split(overflow: _Overflow, size: int) -> None:
    warnings.warn(
        f"A forward of {len(overflow.samples)} samples does not fit into memory"
        f" ({overflow.message}); it is done in parts of {size}, with the same gradients. A smaller"
        " training.batch_size with more training.accumulation saves the failed attempts.",
        stacklevel=3,
    )


def _does_not_fit(sample: Sample, message: str) -> DataError:
    return DataError(
        f"Sample {sample.id}: does not fit into memory, even alone ({message}). Lower"
        " sampling.train_max_frames."
    )


# --- passes through a sharded host


def run_in_lockstep(
    loss: BatchLoss, processes: ProcessGroup, batches: list[list[ReadySample]]
) -> StepStats:
    """Run as many passes through a sharded host as the process that has the most batches.

    FSDP gathers each layer collectively, so all processes must run the same number of passes. A
    process with fewer batches, none of them empty, fills up with a sample whose loss has weight 0.
    """
    total = sum(map(len, batches))
    first_id = batches[0][0][0].sample.id if batches else None
    gathered = processes.all_gather([len(batches), first_id])
    most = max(count for count, _ in gathered)
    filler: list[ReadySample] = []
    if batches:
        filler = batches[-1][:1]
    elif most:
        filler = [_ready_sample(loss, next(id_ for count, id_ in gathered if count))]
    # Preparing the filler can fail; FSDP's collectives would then wait for this process forever.
    processes.barrier()
    stats = StepStats()
    with in_step(processes):
        for batch in batches:
            loss.backward(batch, total, stats)
        for _ in range(most - len(batches)):
            loss.backward(filler, math.inf, StepStats())
    return stats


def _ready_sample(loss: BatchLoss, sample_id: str) -> ReadySample:
    """Return another process's sample for a process that has none of its own in this step.

    Its signal is not perturbed: that would draw random numbers that a single process does not.
    """
    sample = next(s for s in loss.pipeline.samples("train") if s.id == sample_id)
    prepared = loss.pipeline.prepare(sample, training=True)
    if loss.settings.condition == "none":
        return prepared, []
    return prepared, prepared.clip_inputs()
