"""When a clip is looked at, and its visual grid: which visual tokens there are, and which stretch
of time each step of them shows.

The only place where frame times become step times (:func:`visual_grid`): hosts, signal encoders and
backbones all read its result.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modulate.errors import VideoError


@dataclass(frozen=True)
class VisualGrid:
    """steps × rows × columns of visual tokens.

    ``times[k]`` is the mean presentation time of the frames merged into step ``k``; ``spans[k] =
    (start, end)`` is the stretch of time that it stands for: spans touch each other and cover the
    clip's window. Both in seconds of the video's own clock.
    """

    rows: int
    cols: int
    times: tuple[float, ...]
    spans: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if len(self.times) != len(self.spans) or not self.times or self.rows < 1 or self.cols < 1:
            raise VideoError(
                "A visual grid needs at least one step, row and column, and a span for every step;"
                f" got {self!r}."
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
        """Visual tokens of the clip: steps × rows × cols, in the host's order (time, then row, then
        column).
        """
        return self.steps * self.tokens_per_step

    def centers(self) -> list[tuple[float, float]]:
        """Return (x, y) of every token's centre in [0, 1], origin top-left, row by row."""
        return [
            ((c + 0.5) / self.cols, (r + 0.5) / self.rows)
            for r in range(self.rows)
            for c in range(self.cols)
        ]


def counted_on(grid: VisualGrid, start: float, seconds: float) -> VisualGrid:
    """Return ``grid`` with steps that last ``seconds`` each, counted on from ``start``, whatever
    the frames' own times.

    What GazeQwen's code does, which takes the frame rate it asked for to be the one it got; only
    here so that it can be compared with.
    """
    spans = tuple((start + k * seconds, start + (k + 1) * seconds) for k in range(grid.steps))
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
        frame_times: seconds, increasing, one for each frame that the host really received before merging. When their number is no
            multiple of ``frames_per_step`` the last frame is taken to be repeated, as the hosts' video processors do.
        frames_per_step: frames that the host merges into one step (its temporal patch size).
        rows, cols: visual tokens of one step, after the host's spatial merge.
        window: (start, end) of the clip in seconds; by default the first and last frame's times. The first frame may have come up before
            the window: it is what was shown when the window opened, and counts from then.

    Raises :class:`VideoError` when times are missing, not increasing, or outside the window.
    """
    times = [float(t) for t in frame_times]
    if not times or any(b <= a for a, b in zip(times, times[1:], strict=False)):
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
    groups[-1] += [groups[-1][-1]] * (frames_per_step - len(groups[-1]))
    cuts = [start] + [(a[-1] + b[0]) / 2 for a, b in zip(groups, groups[1:], strict=False)] + [end]
    return VisualGrid(
        rows, cols, tuple(sum(g) / len(g) for g in groups), tuple(zip(cuts, cuts[1:], strict=False))
    )


def sample_times(
    window: tuple[float, float], fps: float, max_frames: int | None = None
) -> list[float]:
    """Return the times (s) at which to look at ``window`` = (start, end): …, end − 2/fps, end −
    1/fps, end, none before start.

    Where that makes more than ``max_frames``, they are spread evenly over the window instead, both
    ends included (one alone is the end). Raises :class:`VideoError` for a window that ends before
    it starts, or values that are not finite or positive.
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
    count = math.floor((end - start) * fps + 1e-6) + 1
    if max_frames is None or count <= max_frames:
        return [max(start, end - k / fps) for k in reversed(range(count))]
    if max_frames == 1:
        return [end]
    return [start + (end - start) * k / (max_frames - 1) for k in range(max_frames - 1)] + [end]
