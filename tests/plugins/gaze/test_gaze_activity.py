"""Activity of fixations, against plain loops."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from modulate.errors import ConditioningError
from modulate.interfaces.visual_grid import VisualGrid, visual_grid
from modulate_gaze.activity import activity, align, decayed, share
from modulate_gaze.coordinates import CoordPEParams, CoordRelParams
from modulate_gaze.heatmaps import HeatmapDurParams, HeatmapTauParams
from modulate_gaze.scanpath import Scanpath

CLIPS = [
    (
        Scanpath([(0.1, 0.2, 1.0, 0.6), (0.7, 0.9, 1.1, 0.5), (0.5, 0.5, 4.0, 2.0)]),
        visual_grid([0, 1, 2, 3, 4, 5], 2, 2, 3),
    ),
    (Scanpath(), visual_grid([10, 12], 1, 2, 3)),
    (
        Scanpath([(0.4, 0.4, 3700.2, 0.5)]),
        visual_grid([3700, 3700.2, 3700.4, 3701], 1, 2, 3, (3699, 3702)),
    ),
]


def looped(clips, weigh):
    """Return steps × the largest number of fixations, number by number."""
    widest = max(len(scanpath) for scanpath, _ in clips)
    table = []
    for scanpath, grid in clips:
        for time, span in zip(grid.times, grid.spans, strict=True):
            row = [
                weigh(t - d / 2, t + d / 2, time, *span)
                for _, _, t, d in scanpath.fixations.tolist()
            ]
            table.append(row + [0.0] * (widest - len(row)))
    return torch.tensor(table, dtype=torch.float64).reshape(len(table), widest)


def batched(clips, weigh):
    alignment = align(*zip(*clips, strict=True))
    return alignment.steps_of(weigh(alignment)).double()


def overlap(begin, end, time, start, finish):
    return max(0.0, min(end, finish) - max(begin, start))


def test_midpoint_activity_is_the_papers_condition():
    expected = looped(CLIPS, lambda begin, end, time, *_: float(begin <= time <= end))
    assert expected.sum() == 4
    assert torch.equal(batched(CLIPS, lambda alignment: activity(alignment, "midpoint")), expected)


def test_overlap_activity_is_seconds_shared_with_the_step():
    expected = looped(CLIPS, overlap)
    assert expected.sum() == pytest.approx(0.6 + 0.5 + 2.0 + 0.5)
    assert torch.allclose(
        batched(CLIPS, lambda alignment: activity(alignment, "overlap")), expected, atol=1e-9
    )


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(
                    st.just(0.5),
                    st.just(0.5),
                    st.integers(0, 80).map(lambda v: v / 4 + 0.1),
                    st.integers(1, 40).map(lambda v: v / 4),
                ),
                max_size=5,
            ),
            st.lists(st.integers(0, 20), min_size=1, max_size=6, unique=True).map(sorted),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_padding_never_leaks_between_clips(clips):
    clips = [(Scanpath(rows), visual_grid(times, 1, 1, 1, (-1, 21))) for rows, times in clips]
    assert torch.allclose(
        batched(clips, lambda alignment: activity(alignment, "overlap")),
        looped(clips, overlap),
        atol=1e-9,
    )


def test_the_edge_of_a_fixation_counts_as_active_despite_rounding():
    grid = VisualGrid(1, 1, (1.0,), ((0.9, 1.1),))
    assert abs(1.0 - 1.1) > 0.2 / 2  # in floating point
    assert (
        batched(
            [(Scanpath([(0.5, 0.5, 1.1, 0.2)]), grid)],
            lambda alignment: activity(alignment, "midpoint"),
        ).item()
        == 1
    )


def released_activity(rows, time):
    """Apply the released code's test of one step: float32 rows, a Python number."""
    middle, lasts = torch.tensor(rows, dtype=torch.float32)[:, 2:].T
    half = lasts.clamp(min=1e-6) / 2.0
    return ((time >= middle - half) & (time <= middle + half)).double()


EDGES = [0.1 + 0.2, 1 / 3, 2 / 3, 1.0, 62.1, 138.0, 3723.0]


@pytest.mark.parametrize("edge", EDGES)
def test_activity_as_released_is_the_released_comparison_at_every_edge(edge):
    rows = [
        [0.5, 0.5, edge + sign * lasts / 2 + index * step, lasts]
        for sign in (-1, 1)
        for lasts in (0.0, 1e-7, 0.2, 2.04)
        for index in range(-3, 4)
        for step in (1e-9, 4e-7, float(np.spacing(np.float32(edge))))
    ]
    scanpath = Scanpath([[*row[:2], max(row[2], 0.0), row[3]] for row in rows])
    grid = VisualGrid(1, 1, (edge,), ((edge, edge),))
    found = batched([(scanpath, grid)], lambda alignment: activity(alignment, "released"))[0]
    assert torch.equal(
        found, released_activity(scanpath.fixations.tolist(), edge)
    ) and 0 < found.sum() < len(rows)
    assert not torch.equal(
        found, batched([(scanpath, grid)], lambda alignment: activity(alignment, "midpoint"))[0]
    )  # which forgives a microsecond


@given(
    st.lists(st.tuples(st.floats(0, 4000), st.floats(0, 5)), min_size=1, max_size=12),
    st.lists(st.floats(0, 4000), min_size=1, max_size=4, unique=True),
)
def test_activity_as_released_is_the_released_comparison_everywhere(spans, times):
    scanpath = Scanpath([(0.5, 0.5, middle, lasts) for middle, lasts in spans])
    times = sorted(times)
    grid = VisualGrid(1, 1, tuple(times), tuple((time, time) for time in times))
    found = batched([(scanpath, grid)], lambda alignment: activity(alignment, "released"))
    assert torch.equal(
        found, torch.stack([released_activity(scanpath.fixations.tolist(), time) for time in times])
    )


def test_only_coord_pe_knows_the_released_arithmetic():
    assert CoordPEParams(active="released").departures()[-1][1].startswith("active is `released`")
    for params in (CoordRelParams, HeatmapTauParams, HeatmapDurParams):
        with pytest.raises(ValidationError, match="active"):
            params(active="released")


def test_ends_that_touch_do_not_overlap():
    grid = VisualGrid(1, 1, (0.5, 1.5), ((0.0, 1.1), (1.1, 2.0)))
    assert (
        batched(
            [(Scanpath([(0.5, 0.5, 1.2, 0.2)]), grid)],
            lambda alignment: activity(alignment, "overlap"),
        )[0].item()
        == 0
    )


def test_an_instant_and_a_single_frame_still_overlap():
    moment = Scanpath([(0.5, 0.5, 2.0, 0.0)])
    assert batched(
        [(moment, visual_grid([1, 2, 3], 1, 1, 1))],
        lambda alignment: activity(alignment, "overlap"),
    ).squeeze(-1).tolist() == pytest.approx([0, 1e-3, 0])
    assert batched(
        [(Scanpath([(0.5, 0.5, 2.0, 1.0)]), visual_grid([2], 1, 1, 1))],
        lambda alignment: activity(alignment, "overlap"),
    ).item() == pytest.approx(1e-3)


def test_share_sums_to_one_where_anything_is_active_and_to_nothing_elsewhere():
    shares = share(torch.tensor([[[1.0, 3.0], [0.0, 0.0]]]))
    assert shares.tolist() == [[[0.25, 0.75], [0.0, 0.0]]]


def test_decay_at_the_steps_time_is_the_exponential_of_the_age():
    tau = 0.8
    expected = looped(
        CLIPS,
        lambda begin, end, time, *_: (
            math.exp(-max(0.0, time - end) / tau) if begin <= time else 0.0
        ),
    )
    assert (expected > 0).sum() > 4
    assert torch.allclose(
        batched(CLIPS, lambda alignment: decayed(alignment, "midpoint", torch.tensor(tau))),
        expected,
        atol=1e-6,
    )


def test_decay_over_a_span_is_the_mean_of_the_exponential_of_the_age():
    tau = 0.8
    n = 4000

    def mean(begin, end, time, start, finish):
        moments = [start + (index + 0.5) / n * (finish - start) for index in range(n)]
        return (
            sum(math.exp(-max(0.0, moment - end) / tau) for moment in moments if moment >= begin)
            / n
        )

    assert torch.allclose(
        batched(CLIPS, lambda alignment: decayed(alignment, "overlap", torch.tensor(tau))),
        looped(CLIPS, mean),
        atol=1e-3,
    )


def test_decay_tends_to_the_overlap_when_it_is_quick_and_to_one_when_it_is_slow():
    alignment = align(*zip(*CLIPS[:1], strict=True))
    spans = (alignment.spans[..., 1] - alignment.spans[..., 0])[..., None]
    assert torch.allclose(
        decayed(alignment, "overlap", torch.tensor(1e-5)).double(),
        activity(alignment, "overlap") / spans,
        atol=1e-4,
    )
    assert torch.allclose(
        decayed(alignment, "overlap", torch.tensor(1e6))[0, -1, :2], torch.ones(2), atol=1e-5
    )


def test_a_fixation_that_has_faded_counts_for_nothing_at_all():
    grid = visual_grid([0, 1, 2, 100], 1, 1, 1)
    weights = batched(
        [(Scanpath([(0.5, 0.5, 0.2, 0.2)]), grid)],
        lambda alignment: decayed(alignment, "overlap", torch.tensor(1.0)),
    )
    assert weights[2].item() > 0 and weights[3].item() == 0


def test_other_signals_and_unequal_numbers_are_refused():
    grid = visual_grid([0], 1, 1, 1)
    for signals, message in [
        ([Scanpath()], "got 1 signals (scanpaths) for 2 grids."),
        ([Scanpath(), 3], "got 2 signals (int) for 2 grids."),
    ]:
        with pytest.raises(ConditioningError, match=re.escape(message)):
            align(signals, [grid, grid])
