"""The gradients of one optimizer step: samples prepared, forwards and backwards, in smaller parts
where memory is short.
"""

import math
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from accelerate import Accelerator

from modulate.config.sections import Stage
from modulate.data.feature_extractor import catch_sample_error
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import DataError, ModulateError
from modulate.hosts.fsdp import in_step
from modulate.inference.batching import LAST_LOGITS
from modulate.inference.pipeline import Pipeline
from modulate.inference.preparation import PreparedSample
from modulate.inference.shared_prefix import shared_prefix, shared_prefix_forward
from modulate.interfaces.components import Sample
from modulate.modulation.attachment import ModulatedHost
from modulate.modulation.clip_inputs import ClipInput
from modulate.training.gradient_checkpointing import recomputed
from modulate.training.optimizer import smoothed_cross_entropy
from modulate.training.trainer_state import TrainerState
from modulate.utils.out_of_memory import first_line, free_cached_memory, is_out_of_memory

Row = tuple[PreparedSample, list[ClipInput]]


@dataclass
class StepStats:
    """Totals of one optimizer step, summed over its samples.

    ``loss``: sum; ``right``: correct answers; ``active``: samples whose signal reached a token;
    ``split``: whether batches were computed in parts because memory was short; ``apart``: batches
    of one clip whose questions could not share a pass.
    """

    loss: float = 0.0
    right: int = 0
    active: int = 0
    ids: list[str] = field(default_factory=list)
    split: bool = False
    apart: int = 0

    @property
    def n(self) -> int:
        """Number of samples that took part."""
        return len(self.ids)


class TrainStep:
    """Computes the gradients of an optimizer step and leaves them on the parameters of ``host``.

    ``rng`` drives the augmentation. ``failed`` collects the error of each sample that cannot be
    used; more than the recipe allows are a :class:`DataError`. ``samples``: size of the training
    set. ``prepare``: by default the pipeline's. ``processes``: those that share a step.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        accelerator: Accelerator,
        host: ModulatedHost,
        rng: random.Random,
        failed: dict[str, str],
        samples: int,
        prepare: Callable[[Sample], PreparedSample] | None = None,
        processes: ProcessGroup | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.accelerator = accelerator
        self.host = host
        self.rng = rng
        self.failed = failed
        self.samples = samples
        self.settings = pipeline.recipe.training
        self.prepare = prepare or partial(pipeline.prepare, training=True)
        self.processes = processes or ProcessGroup()

    def accumulate(self, batches: Sequence[Sequence[Sample]]) -> StepStats:
        """Run forward and backward passes over ``batches``.

        The gradient is that of the mean loss over all their samples, however they are divided. A
        part that does not fit into memory is tried again in halves; a sample that does not fit even
        alone is recorded as failed and left out.
        """
        ready = self._drawn(
            [[p for s in samples if (p := self._prepare(s))] for samples in batches]
        )
        with recomputed(self.pipeline.host, self.settings.gradient_checkpointing):
            return (
                self._in_step([rows for rows in ready if rows])
                if self.processes.shards
                else self._in_parts(ready)
            )

    def _in_parts(self, ready: list[list[Row]]) -> StepStats:
        """Compute batches whole, or in ever smaller parts until they fit into memory."""
        size = max(1, *map(len, ready))
        stats = StepStats()
        while True:
            full, text = self._attempt(ready, size, stats)
            if not full:
                return stats
            self.host.zero_grad()  # The backward pass that ran out of memory has left some.
            free_cached_memory()
            stats = StepStats(split=True)
            if len(full) > 1:
                size = len(full) // 2
                warnings.warn(
                    f"A forward of {len(full)} samples does not fit into memory ({text}); it is"
                    f" done in parts of {size}, with the same gradients. A smaller"
                    " training.batch_size with more training.accumulation saves the failed"
                    " attempts.",
                    stacklevel=2,
                )
            else:
                (sample,) = [p.sample for p, _ in full]
                ready = [[row for row in rows if row[0].sample.id != sample.id] for rows in ready]
                self._fail(
                    sample,
                    DataError(
                        f"Sample {sample.id}: does not fit into memory, even alone ({text}). Lower"
                        " sampling.train_max_frames."
                    ),
                )

    def _in_step(self, parts: list[list[Row]]) -> StepStats:
        """Run as many passes through a sharded host as the process with the most parts.

        FSDP gathers each layer collectively, so all processes must run the same number of passes. A
        process with fewer parts repeats a sample with a loss of weight 0.
        """
        stats = StepStats()
        total = sum(map(len, parts))
        told = self.processes.all_gather([len(parts), parts[0][0][0].sample.id if parts else None])
        most = max(n for n, _ in told)
        spare = (
            parts[-1][:1]
            if parts
            else [self._borrowed(next(name for n, name in told if n))]
            if most
            else []
        )
        self.processes.barrier()
        with in_step(self.processes):
            for part in parts:
                self._learn(part, total, stats)
            for _ in range(most - len(parts)):
                self._learn(spare, math.inf, StepStats())
        return stats

    def _borrowed(self, name: str) -> Row:
        sample = next(s for s in self.pipeline.samples("train") if s.id == name)
        prepared = self.pipeline.prepare(sample, training=True)
        return prepared, (
            [] if self.settings.condition == "none" else [prepared.clip(prepared.signal)]
        )

    def _attempt(
        self, ready: list[list[Row]], size: int, stats: StepStats
    ) -> tuple[list[Row], str]:
        """Compute all batches, at most ``size`` samples at once.

        Return the part that did not fit into memory, if any, and torch's message.
        """
        total = sum(map(len, ready))
        for rows in ready:
            for start in range(0, len(rows), size):
                try:
                    self._learn(part := rows[start : start + size], total, stats)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    return part, first_line(error)
        return [], ""

    def _learn(self, part: list[Row], total: float, stats: StepStats) -> None:
        prepared = [row for row, _ in part]
        common = self._common(prepared)
        stats.apart += self.settings.batch_by == "clip" and not common and len(part) > 1
        batch = self.pipeline.collate(prepared, with_inputs=not common)
        with self.accelerator.autocast():
            if common:
                output: object = shared_prefix_forward(
                    self.host, self.host.attachment.model, prepared, part[0][1], common
                )
            else:
                output = self.host([clips for _, clips in part], **batch.inputs, **LAST_LOGITS)
        logits = batch.option_logits(output)
        loss = smoothed_cross_entropy(logits, batch.answers, self.settings.label_smoothing)
        # Without a residual there is no gradient: with injection.empty: none, a batch whose
        # signals are all empty teaches nothing.
        if loss.requires_grad:
            self.accelerator.backward(loss * len(part) / total)
        stats.loss += float(loss.detach()) * len(part)
        stats.right += int((logits.argmax(1) == batch.answers).sum())
        active = sum(n > 0 for n in self.host.attachment.report().active_steps)
        stats.active += active * len(part) if common else active
        stats.ids += [row.sample.id for row in prepared]

    def _common(self, prepared: Sequence[PreparedSample]) -> int:
        """Return the number of leading positions that these prompts share in one pass, or 0."""
        return (
            shared_prefix(prepared, list(self.host.attachment.host.visual_ids.values()))
            if self.settings.batch_by == "clip"
            else 0
        )

    def _drawn(self, batches: Sequence[Sequence[PreparedSample]]) -> list[list[Row]]:
        """Return batches with the clips that condition them.

        Augmentation draws the same random numbers as a single process would: each rank continues
        where the one before it ended.
        """
        ready: list[list[Row]] = []

        def draw(state: Any) -> Any:
            self.rng.setstate((state[0], tuple(state[1]), state[2]))
            ready.extend(self._rows(prepared) for prepared in batches)
            return self.rng.getstate()

        if (
            self.processes.size == 1
            or not self.settings.augment
            or self.settings.condition == "none"
        ):
            return [self._rows(prepared) for prepared in batches]
        state = self.processes.chain(self.rng.getstate(), draw)
        self.rng.setstate((state[0], tuple(state[1]), state[2]))
        return ready

    def _rows(self, prepared: Sequence[PreparedSample]) -> list[Row]:
        """Return samples with the clips that condition them.

        Samples that share a pass share one perturbed signal.
        """
        if prepared and self._common(prepared):
            clips = self._clips(prepared[0])
            return [(p, clips) for p in prepared]
        return [(p, self._clips(p)) for p in prepared]

    def _clips(self, prepared: PreparedSample) -> list[ClipInput]:
        if self.settings.condition == "none":
            return []
        signal = prepared.signal.blank() if self.settings.condition == "blank" else prepared.signal
        return [prepared.clip(signal.augmented(self.rng) if self.settings.augment else signal)]

    def _prepare(self, sample: Sample) -> PreparedSample | None:
        made = catch_sample_error(partial(self.prepare, sample), f"Sample {sample.id}: ")
        if not isinstance(made, ModulateError):
            return made
        self._fail(sample, made)
        return None

    def _fail(self, sample: Sample, error: ModulateError) -> None:
        self.failed[sample.id] = str(error)
        self.refuse_too_many(error)

    def refuse_too_many(self, error: ModulateError | None = None) -> None:
        """Raise :class:`DataError` if more samples have failed than the recipe allows.

        ``error``: the last failure, which becomes the cause.
        """
        if len(self.failed) > self.pipeline.recipe.evaluation.max_failed_share * self.samples:
            last = list(self.failed.values())[-1]
            raise DataError(
                f"{len(self.failed)} of {self.samples} training samples failed, more than"
                f" max_failed_share allows. {error or last}"
            ) from error


def diagnosis(stage: Stage, state: TrainerState, stats: StepStats, wrong: list[str]) -> str:
    """Return a message on a training whose losses or gradients are no longer finite."""
    where = (
        f"Gradients are not finite in {len(wrong)} parameters, among them {', '.join(wrong[:3])}"
        if wrong
        else "Its gradients are finite"
    )
    return (
        f"Training diverged: {state.in_a_row} optimizer steps in a row had a loss or gradients that"
        f" are not finite. The last is step {state.step} of stage {stage.name!r}: loss"
        f" {stats.loss / stats.n} on {stats.n} samples, the first {', '.join(stats.ids[:3])}."
        f" {where}. Lower the learning rate {stage.lr:g}, look at these samples, or let"
        " training.max_skipped_steps allow more."
    )
