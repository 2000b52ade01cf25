"""Answers under one condition: forms, batches, failures. Whole runs are tested with training."""

from functools import partial

import pytest
import torch

from modulate.evaluation import sample_predictions, scoring
from tests.samples import one_clip_sample


class Prepared:
    """A prepared sample, as far as failures need one."""

    def __init__(self, name):
        self.sample = one_clip_sample(name)


def rounds(run):
    failed = partial(sample_predictions.failure, condition="signal")
    return scoring._Rounds(
        None, None, "signal", run, lambda sample, error: failed(sample, error=error), list, list
    )


def test_a_batch_that_does_not_fit_is_answered_in_halves():
    sizes = []

    def run(ready):
        sizes.append(len(ready))
        names = [prepared.sample.id for prepared, _ in ready]
        if len(ready) > 2 or "large" in names:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [sample_predictions.choice(p.sample, "signal", [1.0, 0.0], 1) for p, _ in ready]

    ready = [(Prepared(name), []) for name in ("a", "b", "c", "large")]
    with pytest.warns(UserWarning, match="A forward of . samples does not fit into memory"):
        records = rounds(run)._run_that_fits(ready)
    assert sizes == [4, 2, 2, 1, 1]
    assert [record.id for record in records] == ["a", "b", "c", "large"]
    assert [record.prediction for record in records] == [0, 0, 0, None]
    assert "does not fit into memory, even alone" in records[-1].error


def test_other_errors_of_the_host_are_not_retried():
    def run(ready):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        rounds(run)._run_that_fits([(Prepared("a"), [])])
