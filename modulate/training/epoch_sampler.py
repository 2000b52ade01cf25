"""The batches of every epoch, in an order of its own, and each process's part of them."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from modulate.config.sections import Training
from modulate.distributed.process_group import ProcessGroup
from modulate.inference.batching import batches_by_clip, batches_in_order
from modulate.interfaces.sample import Sample

BatchBy = Literal["any", "length", "clip"]


def epoch_batches(
    samples: Sequence[Sample],
    size: int,
    batch_by: BatchBy,
    rng: random.Random,
    length: Callable[[Sample], int] = lambda sample: 0,
) -> list[list[Sample]]:
    """Return an epoch's batches in an order drawn from ``rng``. Their number does not depend on it.

    Args:
        samples: the training samples.
        size: most samples in a batch.
        batch_by: "any" takes samples as they come. "length" batches samples of nearly the same
            ``length``, so that little is padding. "clip" batches samples of one clip only.
        rng: draws the order.
        length: number of sampled frames of a sample.
    """
    order = list(samples)
    rng.shuffle(order)
    if batch_by == "any":
        return batches_in_order(order, size)
    if batch_by == "length":
        batches = batches_in_order(sorted(order, key=length), size)
    else:
        batches = batches_by_clip(order, size)
    rng.shuffle(batches)
    return batches


class EpochSampler:
    """The batches of a training, epoch by epoch.

    Args:
        samples: the training samples.
        settings: batch size, and what a batch has in common.
        seed: together with stage and epoch, it determines the order.
        length: number of sampled frames of a sample.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        settings: Training,
        seed: int,
        length: Callable[[Sample], int],
    ) -> None:
        self.samples = samples
        self.settings = settings
        self.seed = seed
        self.length = length

    def epoch(self, stage: str, number: int) -> list[list[Sample]]:
        """Return the batches of one epoch of a stage; every epoch has the same number of them."""
        # The seed names the epoch, so that a resumed training draws no earlier epochs.
        rng = random.Random(f"{self.seed}:{stage}:{number}")
        settings = self.settings
        return epoch_batches(self.samples, settings.batch_size, settings.batch_by, rng, self.length)

    def batches(self, stage: str, skip: int) -> Iterator[list[Sample]]:
        """Yield a stage's batches without end, after the first ``skip``."""
        number, first = divmod(skip, len(self.epoch(stage, 0)))
        while True:
            yield from self.epoch(stage, number)[first:]
            number += 1
            first = 0


def rank_batches(
    processes: ProcessGroup, settings: Training, batches: Iterator[list[Sample]]
) -> Iterator[list[Sample]]:
    """Yield this process's part of each of ``batches``; some parts are empty.

    In rank order, all processes' parts of an optimizer step join to that step. Batches of one clip
    stay whole. ``batches`` has no end and starts at the beginning of a step.
    """
    if processes.size == 1:
        yield from batches
        return
    while True:
        step = [next(batches) for _ in range(settings.accumulation)]
        if settings.batch_by == "clip":
            chosen = processes.local_part(range(len(step)))
            yield from (batch if number in chosen else [] for number, batch in enumerate(step))
        else:
            yield from _rank_samples(processes, step)


def _rank_samples(processes: ProcessGroup, step: list[list[Sample]]) -> Iterator[list[Sample]]:
    """Yield this process's samples of every batch of a step."""
    places = [(number, index) for number, batch in enumerate(step) for index in range(len(batch))]
    chosen = set(processes.local_part(places))
    for number, batch in enumerate(step):
        yield [sample for index, sample in enumerate(batch) if (number, index) in chosen]
