"""The visual grid of a clip: its visual tokens, and the time that each step of them shows.

:func:`visual_grid` is the only place where frame times become step times; hosts, signal encoders
and backbones read its result.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from modulate.errors import VideoError


@dataclass(frozen=True)
class VisualGrid:
    """The visual tokens of a clip: steps × rows × columns.

    Attributes:
        rows, cols: visual tokens of one step.
        times: of each step, the mean presentation time of its frames, in seconds of the video.
        spans: of each step, (start, end) in seconds. Spans are contiguous and cover the clip's
            window.
    """

    rows: int
    cols: int
    times: tuple[float, ...]
    spans: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        is_whole = hasattr(self.rows, "__index__") and hasattr(self.cols, "__index__")
        has_steps = len(self.times) == len(self.spans) > 0
        if not (is_whole and self.rows >= 1 and self.cols >= 1 and has_steps):
            raise VideoError(
                "A visual grid needs at least one step, row and column, and a span for every step;"
                f" got {self!r}."
            )
        borders = [border for span in self.spans for border in span]
        if not all(map(math.isfinite, (*self.times, *borders))) or borders != sorted(borders):
            raise VideoError(
                "The spans of a visual grid are (start, end) in seconds, one after the other; got"
                f" {self!r}."
            )

    @property
    def steps(self) -> int:
        """Number of time steps."""
        return len(self.times)

    @property
    def tokens_per_step(self) -> int:
        """Visual tokens of one step: rows × cols."""
        return self.rows * self.cols

    @property
    def tokens(self) -> int:
        """Number of visual tokens: steps × rows × cols, ordered by time, then row, then column."""
        return self.steps * self.tokens_per_step

    def centers(self) -> list[tuple[float, float]]:
        """Return the center (x, y) of each token of a step, in [0, 1], origin top-left, by row."""
        return [
            ((col + 0.5) / self.cols, (row + 0.5) / self.rows)
            for row in range(self.rows)
            for col in range(self.cols)
        ]


def with_regular_steps(grid: VisualGrid, start: float, seconds: float) -> VisualGrid:
    """Return ``grid`` with steps of equal duration, ``seconds``, from ``start`` on.

    This ignores the frames' own times, and repeats GazeQwen's code, which takes the frame rate it
    requested for the one it received. It exists for comparison only.
    """
    spans = tuple((start + i * seconds, start + (i + 1) * seconds) for i in range(grid.steps))
    return VisualGrid(grid.rows, grid.cols, tuple(begin for begin, _ in spans), spans)


def visual_grid(
    frame_times: Sequence[float],
    frames_per_step: int,
    rows: int,
    cols: int,
    window: tuple[float, float] | None = None,
) -> VisualGrid:
    """Build the grid of a clip from its frames' presentation times.

    Args:
        frame_times: seconds, increasing, of every frame that the host received.
        frames_per_step: frames that the host merges into one step (its temporal patch size). If the
            last step lacks frames, the last frame is repeated, as hosts' video processors do.
        rows: rows of visual tokens of one step, after the host's spatial merge.
        cols: columns, likewise.
        window: (start, end) of the clip in seconds; by default the first and last frame's times.
            The first frame may be older than the window: it was on screen when the window began,
            and counts from then.

    Raises :class:`VideoError` if times are missing, do not increase, or lie outside the window, and
    if a step has no frames.
    """
    if not hasattr(frames_per_step, "__index__") or frames_per_step < 1:
        raise VideoError(f"A step has at least one frame; got {frames_per_step!r} frames per step.")
    times = [float(time) for time in frame_times]
    if not times or not all(later > earlier for earlier, later in pairwise(times)):
        raise VideoError(f"Frame times must be increasing and at least one; got {times}.")
    start, end = window or (times[0], times[-1])
    if len(times) == 1 or times[1] > start:
        times[0] = max(times[0], start)
    if times[0] < start - 1e-6 or times[-1] > end + 1e-6:
        raise VideoError(
            f"Frames at {times[0]:.3f}–{times[-1]:.3f} s lie outside the clip's window"
            f" {start:.3f}–{end:.3f} s."
        )
    groups = [times[i : i + frames_per_step] for i in range(0, len(times), frames_per_step)]
    missing = frames_per_step - len(groups[-1])
    groups[-1] += [groups[-1][-1]] * missing
    # Steps meet half-way between the last frame of one and the first frame of the next.
    borders = [(before[-1] + after[0]) / 2 for before, after in pairwise(groups)]
    step_times = tuple(sum(group) / len(group) for group in groups)
    return VisualGrid(rows, cols, step_times, tuple(pairwise([start, *borders, end])))


def picture_grid(rows: int, cols: int, window: tuple[float, float] = (0.0, 0.0)) -> VisualGrid:
    """Build the grid of a picture: one step, which lasts for the whole of ``window``.

    ``window``: (start, end) in seconds of the time during which the picture was looked at.
    """
    return VisualGrid(rows, cols, ((window[0] + window[1]) / 2,), (window,))


def sample_times(
    window: tuple[float, float], fps: float, max_frames: int | None = None
) -> list[float]:
    """Return the times (s) at which to sample ``window``: …, end − 2/fps, end − 1/fps, end.

    ``window``: (start, end) in seconds; no time is before its start. If there were more than
    ``max_frames`` times, they are spaced evenly over the window instead, with both ends (a single
    one is the end).

    Raises :class:`VideoError` if the window ends before it starts, or a value is not finite or not
    positive.
    """
    start = float(window[0])
    end = float(window[1])
    if not (math.isfinite(start) and math.isfinite(end) and start <= end):
        raise VideoError(
            f"A window must be (start, end) in seconds with start ≤ end; got ({start}, {end})."
        )
    if not (math.isfinite(fps) and fps > 0) or (max_frames is not None and max_frames < 1):
        raise VideoError(
            f"Sampling needs fps > 0 and max_frames ≥ 1; got fps={fps}, max_frames={max_frames}."
        )
    # The tolerance keeps a window of exactly k frame intervals from losing one to rounding.
    count = math.floor((end - start) * fps + 1e-6) + 1
    if max_frames is None or count <= max_frames:
        return [max(start, end - i / fps) for i in reversed(range(count))]
    if max_frames == 1:
        return [end]
    # The end is appended, not computed: it must equal the window's end to the bit.
    return [start + (end - start) * i / (max_frames - 1) for i in range(max_frames - 1)] + [end]
