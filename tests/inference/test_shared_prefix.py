"""Which prompts may go through a clip together: those that show one clip with one signal and begin
alike.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from modulate.inference.controls import ShufflePool
from modulate.inference.preparation import PreparedSample
from modulate.inference.shared_prefix import _same, shared_prefix
from modulate.interfaces.components import Sample
from modulate.interfaces.multi_signal import MultiSignal
from modulate_gaze.scanpath import Scanpath
from tests.tiny import GRID, VIDEO, features, scanpath

PREFIX = [1, *[VIDEO] * GRID.tokens, 7, 8]


def prepared(*own, video="v.mp4", window=(0.0, 3.0), prefix=PREFIX, signal=None, grid=GRID):
    sample = Sample("-".join(map(str, own)), "task", Path(video), window, "?", ("x", "y"), 0, {})
    ids = torch.tensor([[*prefix, *own]])
    return PreparedSample(
        sample, {"input_ids": ids}, grid, features(), signal or scanpath(), torch.tensor([1, 2])
    )


def test_prompts_share_what_they_begin_with():
    assert shared_prefix([prepared(9, 9), prepared(10, 9, 9)], [VIDEO]) == len(PREFIX)
    assert shared_prefix([prepared(9, 10), prepared(9, 11)], [VIDEO]) == len(PREFIX) + 1
    assert (
        shared_prefix([prepared(9, 10, 11), prepared(9, 12, 11), prepared(9, 12, 13)], [VIDEO])
        == len(PREFIX) + 1
    )


def test_every_prompt_keeps_a_token_of_its_own_to_be_answered_at():
    assert shared_prefix([prepared(9), prepared(9, 10)], [VIDEO]) == len(PREFIX)
    assert shared_prefix([prepared(9, 10), prepared(9, 10)], [VIDEO]) == len(PREFIX) + 1


def test_a_prompt_alone_or_without_a_clip_shares_nothing():
    assert shared_prefix([prepared(9)], [VIDEO]) == 0
    assert shared_prefix([prepared(9, grid=None), prepared(10, grid=None)], [VIDEO]) == 0


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
def test_other_clips_signals_and_prompts_that_part_before_the_clip_s_end_share_nothing(other):
    assert shared_prefix([prepared(9, 9), prepared(10, 9, **other)], [VIDEO]) == 0
    assert shared_prefix([prepared(9, 9), prepared(11), prepared(10, 9, **other)], [VIDEO]) == 0


def test_visual_tokens_of_any_kind_must_lie_in_what_is_shared():
    assert shared_prefix([prepared(9, 6), prepared(10, 6)], [VIDEO]) == len(PREFIX)
    assert shared_prefix([prepared(9, 6), prepared(10, 9)], [VIDEO, 6]) == 0


def test_signals_that_are_given_count_instead_of_the_prompts_own():
    pair = [prepared(9, 9), prepared(10, 9, signal=scanpath(0.3))]
    assert shared_prefix(pair, [VIDEO]) == 0 and shared_prefix(
        pair, [VIDEO], [scanpath(0.5), scanpath(0.5)]
    ) == len(PREFIX)
    assert shared_prefix([pair[0], pair[0]], [VIDEO], [scanpath(0.5), scanpath(0.4)]) == 0
    assert (
        shared_prefix([pair[0], pair[0]], [VIDEO], [None, scanpath(0.4)])
        == 0
        < shared_prefix([pair[0], pair[0]], [VIDEO], [None, None])
    )


def test_signals_are_the_same_when_they_are_made_of_the_same_values():
    a = scanpath()
    b = scanpath()
    assert _same(a, b) and not _same(a, a.moved(1.0)) and not _same(a, a.within(0.0, 1.0))
    assert _same(MultiSignal({"gaze": a, "other": a}), MultiSignal({"gaze": b, "other": b}))
    assert not _same(MultiSignal({"gaze": a}), MultiSignal({"gaze": a.moved(1.0)})) and not _same(
        MultiSignal({"gaze": a}), MultiSignal({"other": a})
    )
    assert not _same(MultiSignal({"gaze": a}), a) and not _same(None, a) and _same(None, None)
    assert (
        not _same(1, 1.0)
        and not _same(np.zeros(2), np.zeros(3))
        and _same(np.zeros(2), np.zeros(2))
    )


def test_shuffling_draws_a_sample_of_another_video_by_seed_and_sample():
    samples = [
        Sample(f"{video}{i}", "task", Path(video), (0.0, 1.0), "?", ("x",), 0, {})
        for video in "abc"
        for i in range(4)
    ]
    others = ShufflePool(samples)
    drawn = {own.id: others.draw(own, 0) for own in samples}
    assert all(drawn[own.id].video != own.video for own in samples)
    assert (
        drawn
        == {own.id: ShufflePool(samples).draw(own, 0) for own in samples}
        != {own.id: others.draw(own, 1) for own in samples}
    )
    assert len({sample.id for sample in drawn.values()}) > 3


def test_a_prepared_clip_is_conditioned_with_the_signal_that_is_given():
    own = prepared(9)
    clip = own.clip(Scanpath())
    assert len(clip.signal) == 0 and clip.grid is GRID and clip.features is own.features
