"""Which samples of an optimizer step each process takes."""

from itertools import count, islice

import pytest

from modulate.config.sections import Training
from modulate.distributed.process_group import ProcessGroup
from modulate.errors import RecipeError
from modulate.training.gradient_sync import check_size, own_part


def settings(batch_size, accumulation, batch_by="any"):
    return Training(
        stages=({"name": "one", "train": ("modulator",), "epochs": 1},),
        batch_size=batch_size,
        accumulation=accumulation,
        batch_by=batch_by,
    )


def endless(sizes):
    """Batches of these sizes, over and over, of samples that are numbers."""
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
        list(islice(own_part(ProcessGroup(rank, size), of, endless(sizes)), 3 * len(sizes)))
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
        list(islice(own_part(ProcessGroup(rank, 2), of, endless((4, 2, 3))), 3))
        for rank in range(2)
    ]
    assert parts == [[[0, 1, 2, 3], [], []], [[], [4, 5], [6, 7, 8]]]


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "together", "most"),
    [(4, 1, "any", 4), (2, 3, "length", 6), (8, 3, "clip", 3)],
)
def test_a_step_must_have_something_to_do_for_every_process(
    batch_size, accumulation, together, most
):
    of = settings(batch_size, accumulation, together)
    check_size(ProcessGroup(0, most), of)
    with pytest.raises(
        RecipeError,
        match=f"{most + 1} processes share an optimizer step of {most} (samples|batches)",
    ):
        check_size(ProcessGroup(0, most + 1), of)
