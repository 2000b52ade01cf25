"""Gradients of several processes add up to that of the mean over all samples."""

import torch
from accelerate import Accelerator

from modulate.distributed.process_group import ProcessGroup
from modulate.training.data_loader import FailedSamples
from modulate.training.gradient_sync import _flat_gradients, _set_gradients, reduce_step
from modulate.training.loss import StepStats


def gradients_of_mean(inputs):
    """Return two parameters with the gradients of a mean over ``inputs``, and one without."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 2), (2,), (4,))]
    weight, bias, _ = parameters
    if len(inputs):
        (inputs @ weight + bias).square().sum(1).mean().backward()
    return parameters


def test_weighted_by_their_samples_the_parts_are_the_whole():
    inputs = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    whole = gradients_of_mean(inputs)
    parts = [inputs[:2], inputs[2:2], inputs[2:]]  # the second process has no sample left
    flats = [_flat_gradients(gradients_of_mean(part), len(part)) for part in parts]
    found = gradients_of_mean(parts[0])
    _set_gradients(found, sum(flats) / len(inputs), [True, True, False])
    for parameter, expected in zip(found[:2], whole[:2], strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


def test_without_a_gradient_in_any_process_a_parameter_has_none():
    parameters = gradients_of_mean(torch.ones(1, 3))
    flat = _flat_gradients(parameters, 1)
    assert flat.shape == (12,) and (flat[-4:] == 0).all()
    _set_gradients(parameters, flat, [True, False, False])
    assert [p.grad is None for p in parameters] == [False, True, True]


def test_a_single_process_keeps_its_gradients_and_totals():
    parameters = gradients_of_mean(torch.ones(2, 3))
    before = [p.grad for p in parameters]
    stats = StepStats(ids=["a", "b"])
    alone = ProcessGroup()
    accelerator = Accelerator(cpu=True)
    assert reduce_step(alone, accelerator, stats, FailedSamples({}, 2, 0.0), parameters) is stats
    assert [p.grad for p in parameters] == before
