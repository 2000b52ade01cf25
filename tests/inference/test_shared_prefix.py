"""The prefix that prompts on one clip share, and when they share none."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from modulate.inference.preparation import PreparedClip, PreparedSample
from modulate.inference.shared_prefix import _equal, shared_prefix
from modulate.interfaces.multi_signal import MultiSignal
from tests.samples import one_clip_sample
from tests.tiny import GRID, VIDEO, features, scanpath

PREFIX = [1, *[VIDEO] * GRID.tokens, 7, 8]


def prepared(
    *own,
    video="v.mp4",
    window=(0.0, 3.0),
    prefix=PREFIX,
    signal=None,
    grid=GRID,
    is_conditioned=True,
):
    sample = one_clip_sample("-".join(map(str, own)), video, window)
    ids = torch.tensor([[*prefix, *own]])
    clip = PreparedClip(grid, features(), signal or scanpath(), window)
    clips = (clip,) * is_conditioned
    return PreparedSample(sample, {"input_ids": ids}, clips, (torch.tensor([1]), torch.tensor([2])))


def test_prompts_share_their_common_prefix():
    assert shared_prefix([prepared(9, 9), prepared(10, 9, 9)], [VIDEO]) == len(PREFIX)
    assert shared_prefix([prepared(9, 10), prepared(9, 11)], [VIDEO]) == len(PREFIX) + 1
    assert (
        shared_prefix([prepared(9, 10, 11), prepared(9, 12, 11), prepared(9, 12, 13)], [VIDEO])
        == len(PREFIX) + 1
    )


def test_every_prompt_keeps_a_token_of_its_own_at_which_it_is_answered():
    assert shared_prefix([prepared(9), prepared(9, 10)], [VIDEO]) == len(PREFIX)
    assert shared_prefix([prepared(9, 10), prepared(9, 10)], [VIDEO]) == len(PREFIX) + 1


def test_a_single_prompt_and_prompts_without_a_clip_share_nothing():
    assert shared_prefix([prepared(9)], [VIDEO]) == 0
    assert (
        shared_prefix(
            [prepared(9, is_conditioned=False), prepared(10, is_conditioned=False)], [VIDEO]
        )
        == 0
    )


@pytest.mark.parametrize(
    "other",
    [
        {"video": "w.mp4"},
        {"window": (0.0, 2.0)},
        {"signal": scanpath(0.3)},
        {"grid": replace(GRID, rows=3, cols=2)},
        {"prefix": [2, *PREFIX[1:]]},
        {"prefix": [*PREFIX[:5], 9, *PREFIX[5:]]},
    ],
)
def test_different_clips_signals_and_prompts_that_differ_within_the_clip_share_nothing(other):
    assert shared_prefix([prepared(9, 9), prepared(10, 9, **other)], [VIDEO]) == 0
    assert shared_prefix([prepared(9, 9), prepared(11), prepared(10, 9, **other)], [VIDEO]) == 0


def test_visual_tokens_of_every_kind_must_lie_in_the_shared_prefix():
    assert shared_prefix([prepared(9, 6), prepared(10, 6)], [VIDEO]) == len(PREFIX)
    assert shared_prefix([prepared(9, 6), prepared(10, 9)], [VIDEO, 6]) == 0


def test_signals_passed_as_argument_replace_the_prompts_own():
    pair = [prepared(9, 9), prepared(10, 9, signal=scanpath(0.3))]
    assert shared_prefix(pair, [VIDEO]) == 0 and shared_prefix(
        pair, [VIDEO], [[scanpath(0.5)], [scanpath(0.5)]]
    ) == len(PREFIX)
    assert shared_prefix([pair[0], pair[0]], [VIDEO], [[scanpath(0.5)], [scanpath(0.4)]]) == 0
    assert (
        shared_prefix([pair[0], pair[0]], [VIDEO], [[], [scanpath(0.4)]])
        == 0
        < shared_prefix([pair[0], pair[0]], [VIDEO], [[], []])
    )


def test_signals_are_equal_if_their_values_are():
    a = scanpath()
    b = scanpath()
    assert _equal(a, b) and not _equal(a, a.moved(1.0)) and not _equal(a, a.within(0.0, 1.0))
    assert _equal(MultiSignal({"gaze": a, "other": a}), MultiSignal({"gaze": b, "other": b}))
    assert not _equal(MultiSignal({"gaze": a}), MultiSignal({"gaze": a.moved(1.0)})) and not _equal(
        MultiSignal({"gaze": a}), MultiSignal({"other": a})
    )
    assert _equal([a, None], [b, None]) and not _equal([a, b], [a]) and not _equal([a], [None])
    assert not _equal(MultiSignal({"gaze": a}), a) and not _equal(None, a) and _equal(None, None)
    assert (
        not _equal(1, 1.0)
        and not _equal(np.zeros(2), np.zeros(3))
        and _equal(np.zeros(2), np.zeros(2))
    )
