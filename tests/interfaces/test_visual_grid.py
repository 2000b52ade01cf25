"""Sampling times of a clip, and the time span of each step of visual tokens."""

import math

import pytest

from modulate.errors import VideoError
from modulate.interfaces.visual_grid import (
    VisualGrid,
    picture_grid,
    sample_times,
    visual_grid,
    with_regular_steps,
)


def test_steps_have_the_mean_time_of_their_frames_and_meet_halfway_between_frames():
    grid = visual_grid([10.0, 10.5, 12.0, 13.0, 15.0, 16.0], 2, rows=2, cols=3, window=(9.0, 17.0))
    assert grid.times == (10.25, 12.5, 15.5)
    assert grid.spans == ((9.0, 11.25), (11.25, 14.0), (14.0, 17.0))
    assert (grid.rows, grid.cols, grid.steps, grid.tokens_per_step, grid.tokens) == (2, 3, 3, 6, 18)


def test_without_a_window_the_first_and_last_frame_bound_the_clip():
    assert visual_grid([1.0, 2.0, 4.0], 1, 1, 1).spans == ((1.0, 1.5), (1.5, 3.0), (3.0, 4.0))


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_the_last_frame_fills_an_incomplete_step(missing):
    frames = [float(time) for time in range(8 - missing)]
    last = [*frames[4:], *[frames[-1]] * missing]
    assert visual_grid(frames, 4, 1, 1).times == (1.5, sum(last) / 4)


def test_centers_go_row_by_row_from_the_top_left():
    grid = visual_grid([0.0], 1, rows=2, cols=4)
    assert grid.centers() == [(x, y) for y in (0.25, 0.75) for x in (0.125, 0.375, 0.625, 0.875)]


def test_a_first_frame_that_came_up_before_the_window_counts_from_its_start():
    assert visual_grid([3.0, 6.0], 1, 1, 1, window=(5.0, 8.0)).times == (5.0, 6.0)
    assert visual_grid([3.0], 1, 1, 1, window=(5.0, 8.0)).times == (5.0,)
    assert visual_grid([5.5, 6.0], 1, 1, 1, window=(5.0, 8.0)).times == (5.5, 6.0)


@pytest.mark.parametrize(
    ("times", "text"),
    [
        # The second frame appears as the window begins, so the first is not part of it.
        (
            [3.0, 5.0, 6.0],
            r"Frames at 3\.000–6\.000 s lie outside the clip's window 5\.000–8\.000 s",
        ),
        ([3.0, 4.0, 6.0], r"lie outside"),
        ([4.5, 5.0, 6.0], r"Frames at 4\.500–6\.000 s lie outside"),
        ([5.0, 8.5], "lie outside"),
        ([5.0, 8.1], r"Frames at 5\.000–8\.100 s lie outside"),
        ([5.0, 5.0, 6.0], r"must be increasing and at least one; got \[5\.0, 5\.0, 6\.0\]"),
        ([5.0, 7.0, 6.0], "must be increasing"),
        ([], r"at least one; got \[\]"),
    ],
)
def test_frames_outside_the_window_are_refused(times, text):
    with pytest.raises(VideoError, match=text):
        visual_grid(times, 1, 1, 1, window=(5.0, 8.0))


def test_frames_may_lie_outside_the_window_by_a_rounding_error():
    assert visual_grid([5.0 - 5e-7, 8.0 + 5e-7], 1, 1, 1, window=(5.0, 8.0)).times == pytest.approx(
        (5.0, 8.0)
    )


@pytest.mark.parametrize(
    ("rows", "cols", "times", "spans"),
    [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 0), (1, 1, 2, 1), (1, 1, 1, 2)],
)
def test_a_grid_needs_a_step_a_row_a_column_and_a_span_for_each_step(rows, cols, times, spans):
    with pytest.raises(
        VideoError,
        match="at least one step, row and column, and a span for every step; got VisualGrid",
    ):
        VisualGrid(rows, cols, (0.0,) * times, ((0.0, 1.0),) * spans)
    assert VisualGrid(1, 1, (0.0,), ((0.0, 0.0),)).tokens == 1


def test_regular_steps_have_the_same_length_from_the_start():
    grid = with_regular_steps(
        visual_grid([0.0, 1.0, 20.0], 1, rows=2, cols=3), start=4.0, seconds=2.5
    )
    assert grid == VisualGrid(2, 3, (4.0, 6.5, 9.0), ((4.0, 6.5), (6.5, 9.0), (9.0, 11.5)))


def test_sampling_times_count_back_from_the_end_and_stop_at_the_start():
    assert sample_times((1.0, 3.25), 2.0) == [1.25, 1.75, 2.25, 2.75, 3.25]
    # In floating point, 0.3 × 10 is a little less than 3, and 0.3 − 3 / 10 a little less than 0.
    assert sample_times((0.0, 0.3), 10.0)[0] == 0.0
    assert sample_times((2.0, 2.5), 0.5) == [2.5]


def test_more_times_than_the_cap_are_spread_over_the_window():
    assert sample_times((0.0, 3.0), 1.0, max_frames=4) == [0.0, 1.0, 2.0, 3.0]
    assert sample_times((0.5, 3.5), 1.0, max_frames=3) == [0.5, 2.0, 3.5]
    assert sample_times((0.5, 3.5), 1.0, max_frames=2) == [0.5, 3.5]
    assert sample_times((0.5, 3.5), 1.0, max_frames=1) == [3.5]


@pytest.mark.parametrize(
    ("window", "fps", "most"),
    [
        ((math.nan, 1.0), 1.0, None),
        ((-math.inf, 1.0), 1.0, None),
        ((0.0, math.inf), 1.0, None),
        ((0.0, math.nan), 1.0, None),
        ((1.0, 0.9), 1.0, None),
        ((0.0, 1.0), 0.0, None),
        ((0.0, 1.0), -1.0, None),
        ((0.0, 1.0), math.inf, None),
        ((0.0, 1.0), math.nan, None),
        ((0.0, 1.0), 1.0, 0),
        ((0.0, 1.0), 1.0, -1),
    ],
)
def test_impossible_windows_and_rates_are_refused(window, fps, most):
    with pytest.raises(VideoError):
        sample_times(window, fps, most)


def test_a_picture_is_one_step_for_as_long_as_it_was_looked_at():
    grid = picture_grid(2, 3, (1.0, 4.0))
    assert (grid.steps, grid.rows, grid.cols) == (1, 2, 3)
    assert grid.times == (2.5,) and grid.spans == ((1.0, 4.0),)


@pytest.mark.parametrize("frames", [0, -1, 1.5])
def test_a_step_has_a_whole_number_of_frames(frames):
    with pytest.raises(VideoError, match=f"at least one frame; got {frames} frames per step"):
        visual_grid([0.0, 1.0], frames, 2, 3)


@pytest.mark.parametrize(
    ("rows", "times", "spans", "text"),
    [
        (2, (0.5,), ((1.0, 0.0),), "one after the other"),
        (2, (0.5, 2.5), ((2.0, 3.0), (0.0, 1.0)), "one after the other"),
        (2, (0.5, 1.0), ((0.0, 2.0), (1.0, 3.0)), "one after the other"),
        (2, (math.nan,), ((0.0, 1.0),), "in seconds"),
        (2, (0.5,), ((0.0, math.inf),), "in seconds"),
        (2.5, (0.5,), ((0.0, 1.0),), "at least one step, row and column"),
    ],
)
def test_grids_whose_spans_or_sizes_mean_nothing_are_refused(rows, times, spans, text):
    with pytest.raises(VideoError, match=text):
        VisualGrid(rows, 3, times, spans)


def test_frame_times_that_are_no_numbers_are_refused():
    for times in ([0.0, math.nan], [math.nan, 1.0], [0.0, math.inf]):
        with pytest.raises(VideoError, match=r"must be increasing|in seconds|outside"):
            visual_grid(times, 1, 2, 3)
    with pytest.raises(VideoError, match="in seconds"):
        visual_grid([0.0, 1.0], 1, 2, 3, (0.0, math.nan))
