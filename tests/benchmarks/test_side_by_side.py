"""Calls timed side by side: each pays for what it does, and no other."""

import time

import pytest
from torch import nn

from benchmarks.speed.side_by_side import side_by_side


class Busy(nn.Module):
    """Takes so many seconds of the processor."""

    def forward(self, seconds):
        start = time.thread_time()
        while time.thread_time() - start < seconds:
            pass


def calling(seconds, seen):
    def call(model):
        for _ in range(6):
            seen.append(seconds)
            model[0](seconds)

    return call


def test_calls_take_turns_and_each_is_charged_what_it_takes():
    seen = []
    models = [nn.Sequential(Busy()) for _ in range(3)]
    costs = side_by_side(
        [calling(0.012, seen), calling(0.036, seen), calling(0.012, seen)], models, repeats=2
    )
    assert [len(each) for each in costs] == [2, 2, 2]
    for short, long, other in zip(*costs, strict=True):
        assert 0.072 <= short.cpu < 0.1 and 0.216 <= long.cpu < 0.25 and 0.072 <= other.cpu < 0.1
        assert short.wall >= short.cpu - 0.005 and long.wall >= long.cpu - 0.005
    assert seen[:6] == [
        0.012,
        0.012,
        0.036,
        0.036,
        0.012,
        0.012,
    ]  # each is about to begin its second part when the next one's turn comes
    assert seen[:18].count(0.036) == 6
    assert not any(model[0]._forward_pre_hooks for model in models)


def test_a_call_that_fails_ends_the_measurement_and_leaves_no_hook():
    def failing(model):
        model[0](0.02)
        raise ValueError("no")

    models = [nn.Sequential(Busy()) for _ in range(2)]
    with pytest.raises(ValueError, match="no"):
        side_by_side([calling(0.012, []), failing], models, repeats=1)
    assert not any(model[0]._forward_pre_hooks for model in models)
