"""The loss over the options offered, and the totals of a step."""

import math

import pytest
import torch

from modulate.training.loss import StepStats, smoothed_cross_entropy


def test_smoothing_goes_over_the_options_that_are_offered():
    logits = torch.tensor([[1.0, 2.0, -torch.inf], [0.5, 0.0, 1.0]])
    p = logits.softmax(1)
    nll = -torch.stack([p[0, 1].log(), p[1, 0].log()])
    uniform = -torch.stack([p[0, :2].log().mean(), p[1].log().mean()])
    for smoothing in (0.0, 0.1, 0.5):
        loss = smoothed_cross_entropy(logits, torch.tensor([1, 0]), smoothing)
        assert loss.item() == pytest.approx(
            ((1 - smoothing) * nll + smoothing * uniform).mean().item()
        )
    assert smoothed_cross_entropy(torch.tensor([[torch.nan, 1.0]]), torch.tensor([1]), 0.0).isnan()


def test_an_answer_beside_the_offered_options_cannot_win():
    logits = torch.tensor([[1.0, 2.0, -math.inf, -math.inf], [0.5, 0.1, 0.2, 0.3]])
    answers = torch.tensor([0, 3])
    first = -math.log(math.e / (math.e + math.e**2))
    p = [math.exp(v) for v in (0.5, 0.1, 0.2, 0.3)]
    nll = [-math.log(v / sum(p)) for v in p]
    assert smoothed_cross_entropy(logits, answers, 0.0).item() == pytest.approx(
        (first + nll[3]) / 2
    )
    smooth_first = 0.9 * first + 0.1 * (first + first - 1) / 2
    smooth_second = 0.9 * nll[3] + 0.1 * sum(nll) / 4
    assert smoothed_cross_entropy(logits, answers, 0.1).item() == pytest.approx(
        (smooth_first + smooth_second) / 2
    )


def test_a_step_counts_the_samples_that_took_part():
    assert StepStats(ids=["a", "b", "c", "d"]).n == 4
    assert StepStats().n == 0


def test_totals_of_parts_add_up_to_those_of_the_step():
    total = StepStats()
    total.add(StepStats(1.5, 1, 2, ["a", "b"], False, 1))
    total.add(StepStats(0.5, 0, 1, ["c"], True, 1))
    total.add(StepStats())
    assert total == StepStats(2.0, 1, 3, ["a", "b", "c"], True, 2)
