"""The order of every epoch, and each process's part of an optimizer step."""

import random
from itertools import combinations, count, islice

import pytest

from modulate.config.sections import Training
from modulate.distributed.process_group import ProcessGroup
from modulate.training.epoch_sampler import EpochSampler, epoch_batches, rank_batches
from tests.samples import one_clip_sample


def settings(batch_size, accumulation, batch_by="any"):
    return Training(
        stages=({"name": "one", "train": ("modulator",), "epochs": 1},),
        batch_size=batch_size,
        accumulation=accumulation,
        batch_by=batch_by,
    )


def endless(sizes):
    """Yield batches of these sizes, over and over, of samples that are numbers."""
    numbers = count()
    while True:
        for size in sizes:
            yield [next(numbers) for _ in range(size)]


@pytest.mark.parametrize(
    ("size", "sizes"), [(1, (4, 4)), (2, (4, 4)), (3, (4, 3)), (3, (1, 1)), (5, (2, 4))]
)
def test_all_parts_of_a_step_laid_end_to_end_are_the_step(size, sizes):
    of = settings(4, len(sizes))
    parts = [
        list(islice(rank_batches(ProcessGroup(rank, size), of, endless(sizes)), 3 * len(sizes)))
        for rank in range(size)
    ]
    whole = list(islice(endless(sizes), 3 * len(sizes)))
    for step in range(0, len(whole), len(sizes)):
        taken = [
            [sample for batch in part[step : step + len(sizes)] for sample in batch]
            for part in parts
        ]
        assert (
            sum(map(len, taken)) == sum(sizes) and max(map(len, taken)) - min(map(len, taken)) <= 1
        )
        assert [sample for part in taken for sample in part] == [
            sample for batch in whole[step : step + len(sizes)] for sample in batch
        ]
    for k, batch in enumerate(whole):  # each stays in the batch that it is of
        assert sorted(sample for part in parts for sample in part[k]) == batch


def test_batches_of_one_clip_stay_whole():
    of = settings(4, 3, "clip")
    parts = [
        list(islice(rank_batches(ProcessGroup(rank, 2), of, endless((4, 2, 3))), 3))
        for rank in range(2)
    ]
    assert parts == [[[0, 1, 2, 3], [], []], [[], [4, 5], [6, 7, 8]]]


def sampler(batch_by="any", seed=0):
    of = settings(2, 1, batch_by)
    samples = [one_clip_sample(str(i)) for i in range(7)]
    return EpochSampler(samples, of, seed, lambda sample: int(sample.id) % 3)


def test_every_epoch_of_every_stage_has_an_order_of_its_own_that_the_seed_determines():
    epochs = [sampler(seed=s).epoch(stage, n) for s in (0, 1) for stage in "ab" for n in (0, 1)]
    assert sampler().epoch("a", 0) == epochs[0]
    assert all(first != second for first, second in combinations(epochs, 2))
    assert {len(batches) for batches in epochs} == {4}
    for batches in epochs:
        assert sorted(int(sample.id) for batch in batches for sample in batch) == list(range(7))


@pytest.mark.parametrize("skip", [0, 3, 4, 9])
def test_batches_continue_where_a_checkpoint_was(skip):
    whole = list(islice(sampler().batches("a", 0), 12))
    assert list(islice(sampler().batches("a", skip), 12 - skip)) == whole[skip:]


def test_the_number_of_batches_does_not_depend_on_their_order():
    samples = sampler().samples
    for batch_by in ("any", "length", "clip"):
        counts = {len(epoch_batches(samples, 3, batch_by, random.Random(k))) for k in range(5)}
        assert counts == {3}


def test_batches_by_length_mix_few_lengths():
    batches = sampler("length").epoch("a", 0)
    assert sum(len({int(sample.id) % 3 for sample in batch}) - 1 for batch in batches) <= 2
