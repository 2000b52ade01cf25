"""Which fixations are active when, against obvious loops."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modulate.errors import ConditioningError
from modulate.grid import VisualGrid, visual_grid
from modulate_gaze.activity import activity, align, decayed, share
from modulate_gaze.scanpath import Scanpath

CLIPS = [
    (Scanpath([(0.1, 0.2, 1.0, 0.6), (0.7, 0.9, 1.1, 0.5), (0.5, 0.5, 4.0, 2.0)]), visual_grid([0, 1, 2, 3, 4, 5], 2, 2, 3)),
    (Scanpath(), visual_grid([10, 12], 1, 2, 3)),
    (Scanpath([(0.4, 0.4, 3700.2, 0.5)]), visual_grid([3700, 3700.2, 3700.4, 3701], 1, 2, 3, (3699, 3702))),
]


def looped(clips, weigh):
    """Steps × the largest number of fixations, one number at a time."""
    widest = max(len(s) for s, _ in clips)
    table = []
    for scanpath, grid in clips:
        for time, span in zip(grid.times, grid.spans, strict=True):
            row = [weigh(t - d / 2, t + d / 2, time, *span) for _, _, t, d in scanpath.fixations.tolist()]
            table.append(row + [0.0] * (widest - len(row)))
    return torch.tensor(table, dtype=torch.float64).reshape(len(table), widest)


def batched(clips, weigh):
    a = align(*zip(*clips, strict=True))
    return a.steps_of(weigh(a)).double()


def overlap(begin, end, time, start, finish):
    return max(0.0, min(end, finish) - max(begin, start))


def test_midpoint_activity_is_the_papers_condition():
    expected = looped(CLIPS, lambda begin, end, time, *_: float(begin <= time <= end))
    assert expected.sum() == 4
    assert torch.equal(batched(CLIPS, lambda a: activity(a, "midpoint")), expected)


def test_overlap_activity_is_seconds_shared_with_the_step():
    expected = looped(CLIPS, overlap)
    assert expected.sum() == pytest.approx(0.6 + 0.5 + 2.0 + 0.5)
    assert torch.allclose(batched(CLIPS, lambda a: activity(a, "overlap")), expected, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.just(0.5), st.just(0.5), st.integers(0, 80).map(lambda v: v / 4 + 0.1), st.integers(1, 40).map(lambda v: v / 4)), max_size=5),
            st.lists(st.integers(0, 20), min_size=1, max_size=6, unique=True).map(sorted),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_padding_never_leaks_between_clips(clips):
    clips = [(Scanpath(rows), visual_grid(times, 1, 1, 1, (-1, 21))) for rows, times in clips]
    assert torch.allclose(batched(clips, lambda a: activity(a, "overlap")), looped(clips, overlap), atol=1e-9)


def test_the_edge_of_a_fixation_counts_as_active_despite_rounding():
    grid = VisualGrid(1, 1, (1.0,), ((0.9, 1.1),))
    assert abs(1.0 - 1.1) > 0.2 / 2  # in floating point
    assert batched([(Scanpath([(0.5, 0.5, 1.1, 0.2)]), grid)], lambda a: activity(a, "midpoint")).item() == 1


def test_ends_that_touch_do_not_overlap():
    grid = VisualGrid(1, 1, (0.5, 1.5), ((0.0, 1.1), (1.1, 2.0)))
    assert batched([(Scanpath([(0.5, 0.5, 1.2, 0.2)]), grid)], lambda a: activity(a, "overlap"))[0].item() == 0


def test_an_instant_and_a_single_frame_still_overlap():
    moment = Scanpath([(0.5, 0.5, 2.0, 0.0)])
    assert batched([(moment, visual_grid([1, 2, 3], 1, 1, 1))], lambda a: activity(a, "overlap")).squeeze(-1).tolist() == pytest.approx([0, 1e-3, 0])
    assert batched([(Scanpath([(0.5, 0.5, 2.0, 1.0)]), visual_grid([2], 1, 1, 1))], lambda a: activity(a, "overlap")).item() == pytest.approx(1e-3)


def test_share_sums_to_one_where_anything_is_active_and_to_nothing_elsewhere():
    shares = share(torch.tensor([[[1.0, 3.0], [0.0, 0.0]]]))
    assert shares.tolist() == [[[0.25, 0.75], [0.0, 0.0]]]


def test_decay_at_the_steps_time_is_the_exponential_of_the_age():
    tau = 0.8
    expected = looped(CLIPS, lambda begin, end, time, *_: math.exp(-max(0.0, time - end) / tau) if begin <= time else 0.0)
    assert (expected > 0).sum() > 4
    assert torch.allclose(batched(CLIPS, lambda a: decayed(a, "midpoint", torch.tensor(tau))), expected, atol=1e-6)


def test_decay_over_a_span_is_the_mean_of_the_exponential_of_the_age():
    tau, n = 0.8, 4000

    def mean(begin, end, time, start, finish):
        moments = [start + (k + 0.5) / n * (finish - start) for k in range(n)]
        return sum(math.exp(-max(0.0, m - end) / tau) for m in moments if m >= begin) / n

    assert torch.allclose(batched(CLIPS, lambda a: decayed(a, "overlap", torch.tensor(tau))), looped(CLIPS, mean), atol=1e-3)


def test_decay_tends_to_the_overlap_when_it_is_quick_and_to_one_when_it_is_slow():
    a = align(*zip(*CLIPS[:1], strict=True))
    spans = (a.spans[..., 1] - a.spans[..., 0])[..., None]
    assert torch.allclose(decayed(a, "overlap", torch.tensor(1e-5)).double(), activity(a, "overlap") / spans, atol=1e-4)
    assert torch.allclose(decayed(a, "overlap", torch.tensor(1e6))[0, -1, :2], torch.ones(2), atol=1e-5)


def test_a_fixation_that_has_faded_counts_for_nothing_at_all():
    grid = visual_grid([0, 1, 2, 100], 1, 1, 1)
    weights = batched([(Scanpath([(0.5, 0.5, 0.2, 0.2)]), grid)], lambda a: decayed(a, "overlap", torch.tensor(1.0)))
    assert weights[2].item() > 0 and weights[3].item() == 0


def test_other_signals_and_unequal_numbers_are_refused():
    grid = visual_grid([0], 1, 1, 1)
    for signals, message in [([Scanpath()], "got 1 signals (scanpaths) for 2 grids."), ([Scanpath(), 3], "got 2 signals (int) for 2 grids.")]:
        with pytest.raises(ConditioningError, match=re.escape(message)):
            align(signals, [grid, grid])
