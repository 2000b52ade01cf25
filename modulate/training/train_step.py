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
    """Totals of one optimizer step.

    ``split``: memory was short, and its batches were computed in parts. ``apart``: batches of one
    clip whose questions could not be asked together after all.
    """

    loss: float = 0.0
    right: int = 0
    active: int = 0
    ids: list[str] = field(default_factory=list)
    split: bool = False
    apart: int = 0

    @property
    def n(self) -> int:
        """Samples that took part."""
        return len(self.ids)


class TrainStep:
    """Leaves the gradients of an optimizer step on the parameters of ``host``.

    ``rng``: of the augmentation. ``failed``: sample → error, of samples that cannot be used, more
    than the recipe allows of which is a :class:`DataError`; ``samples``: how many there are in all;
    ``prepare``: what makes them ready, by default the pipeline. ``processes``: the processes among
    which a step is divided.
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
        """Go forwards and backwards through ``batches``; the gradient is that of the mean loss over
        all their samples, however they are divided.

        What does not fit into memory is tried again in halves; a sample that does not fit alone is
        recorded as failed, and the others go on without it.
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
        """Go through batches whole, or in ever smaller parts until they fit into memory."""
        size = max(1, *map(len, ready))
        tally = StepStats()
        while True:
            full, text = self._attempt(ready, size, tally)
            if not full:
                return tally
            self.host.zero_grad()  # a backward that was broken off has left some
            free_cached_memory()
            tally = StepStats(split=True)
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
        """Go through a divided host as often as the process that has most to do: what one lacks it
        makes up for with a sample that counts for nothing.
        """
        tally = StepStats()
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
                self._learn(part, total, tally)
            for _ in range(most - len(parts)):
                self._learn(spare, math.inf, StepStats())
        return tally

    def _borrowed(self, name: str) -> Row:
        sample = next(s for s in self.pipeline.samples("train") if s.id == name)
        prepared = self.pipeline.prepare(sample, training=True)
        return prepared, (
            [] if self.settings.condition == "none" else [prepared.clip(prepared.signal)]
        )

    def _attempt(
        self, ready: list[list[Row]], size: int, tally: StepStats
    ) -> tuple[list[Row], str]:
        """Learn from all, at most ``size`` at once.

        Return the part that did not fit into memory, if any, and torch's message.
        """
        total = sum(map(len, ready))
        for rows in ready:
            for start in range(0, len(rows), size):
                try:
                    self._learn(part := rows[start : start + size], total, tally)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    return part, first_line(error)
        return [], ""

    def _learn(self, part: list[Row], total: float, tally: StepStats) -> None:
        prepared = [row for row, _ in part]
        common = self._common(prepared)
        tally.apart += self.settings.batch_by == "clip" and not common and len(part) > 1
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
        # not where every clip's signal is empty and gets no residual (injection.empty: none):
        # nothing can be learned from those
        if loss.requires_grad:
            self.accelerator.backward(loss * len(part) / total)
        tally.loss += float(loss.detach()) * len(part)
        tally.right += int((logits.argmax(1) == batch.answers).sum())
        active = sum(n > 0 for n in self.host.attachment.report().active_steps)
        tally.active += active * len(part) if common else active
        tally.ids += [row.sample.id for row in prepared]

    def _common(self, prepared: Sequence[PreparedSample]) -> int:
        """Return how many positions of these prompts go through once for all of them; 0: each goes
        through alone.
        """
        return (
            shared_prefix(prepared, list(self.host.attachment.host.visual_ids.values()))
            if self.settings.batch_by == "clip"
            else 0
        )

    def _drawn(self, batches: Sequence[Sequence[PreparedSample]]) -> list[list[Row]]:
        """Return batches with what they are conditioned with.

        Random numbers are drawn as by one process alone: each goes on where the one before it
        ended.
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
        """Return samples with what they are conditioned with: one perturbed signal for all that go
        through together.
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
        """Raise :class:`DataError`, with the last failure's ``error`` as its cause, when more
        samples have failed than the recipe allows.
        """
        if len(self.failed) > self.pipeline.recipe.evaluation.max_failed_share * self.samples:
            last = list(self.failed.values())[-1]
            raise DataError(
                f"{len(self.failed)} of {self.samples} training samples failed, more than"
                f" max_failed_share allows. {error or last}"
            ) from error


def diagnosis(stage: Stage, at: TrainerState, tally: StepStats, wrong: list[str]) -> str:
    """Return what is known of a training whose losses or gradients are not finite any more."""
    where = (
        f"Gradients are not finite in {len(wrong)} parameters, among them {', '.join(wrong[:3])}"
        if wrong
        else "Its gradients are finite"
    )
    return (
        f"Training diverged: {at.in_a_row} optimizer steps in a row had a loss or gradients that"
        f" are not finite. The last is step {at.step} of stage {stage.name!r}: loss"
        f" {tally.loss / tally.n} on {tally.n} samples, the first {', '.join(tally.ids[:3])}."
        f" {where}. Lower the learning rate {stage.lr:g}, look at these samples, or let"
        " training.max_skipped_steps allow more."
    )
