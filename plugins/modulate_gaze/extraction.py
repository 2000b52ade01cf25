"""Extract fixations from gaze samples as the StreamGaze benchmark does, and write their files.

The method is anchored dispersion: a run continues while its samples stay within a radius of the
run's *first* sample. x and y are fractions of the frame's width and height, so the radius is an
ellipse in pixels. The first sample outside ends the run and starts the next one. A run that lasts
long enough is a fixation: its center is the mean of its samples, its duration the time from the
first sample to the last.

The benchmark tolerates a sample beyond the radius within 0.01 s of its predecessor. At 24 to 30
samples a second there is none, so a single sample always ends a run. As a limit on the time between
samples, 0.01 s would end every run at its first sample. Here it is the time by which the distance
of two samples may exceed their nominal interval: a run ends where frames are missing (``untracked:
drop``).

The benchmark's next step needs the video and is not done here: it removes fixations on black
frames, and those during which the picture changes (correlation of color histograms below 0.9; 0.5
for HoloAssist). So our files hold a few more fixations. [StreamGaze, arXiv 2512.01707, and its
released preprocessing]
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from modulate.errors import SignalError
from modulate.utils.atomic_files import write_atomically
from modulate_gaze.raw_gaze import Recording, Source, Untracked
from modulate_gaze.scanpath import Scanpath

RADII: Mapping[str, float] = {"egtea": 0.15, "ego4d": 0.088}
"""Radii as fractions of the frame; they equal 96 pixels in videos of these two sources."""

PIXELS = 96
"""Radius for all other sources, pixels of the video's width."""

ROUNDING = 1e-6
"""Tolerance of durations, s: differences of frame times are not exact."""


class Extraction(BaseModel):
    """Settings of the extraction; the defaults are the benchmark's."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    radius: float | None = Field(
        None,
        gt=0,
        description=(
            "radius of a fixation, fraction of the frame; null: the benchmark's for the source"
            " (egtea 0.15, ego4d 0.088, others 96 pixels of the width)"
        ),
    )
    min_seconds: PositiveFloat = Field(
        2.5,
        description=(
            "shortest fixation, s [StreamGaze: 2 in extraction, 2.5 after a later step, which"
            " GazeQwen's files skip: 2]"
        ),
    )
    gap: float = Field(
        0.01,
        ge=0,
        description=(
            "time, s, by which the distance of two samples may exceed their interval within a"
            " fixation [StreamGaze: 0.01]"
        ),
    )
    untracked: Untracked = Field(
        "keep",
        description=(
            "samples without gaze: keep them at the benchmark's position, mostly (0, 0), which can"
            " yield a fixation there; or drop them"
        ),
    )


PRESETS: Mapping[str, Extraction] = {
    "streamgaze": Extraction(),
    "gazeqwen": Extraction(min_seconds=2.0),
}
"""``streamgaze``: both steps of the benchmark's code; ``gazeqwen``: only the first one.

The single fixation file that GazeQwen ships fits the latter: 16 of its 35 fixations last 2.04 to
2.42 s, and the 2.5 s of the later step would have removed them.
"""


def radius_of(source: Source, extraction: Extraction, width: int | None = None) -> float:
    """Return the radius as a fraction of the frame; ``width`` is the video's, in pixels.

    Raises :class:`SignalError` if the width is needed but unknown.
    """
    if extraction.radius is not None:
        return extraction.radius
    if source in RADII:
        return RADII[source]
    if width is None or width < 1:
        raise SignalError(
            f"The radius for {source} is {PIXELS} pixels of the video's width, which is not known."
            " Name the videos or the width, or set the radius."
        )
    return PIXELS / width


def extract(recording: Recording, extraction: Extraction, radius: float) -> Scanpath:
    """Return the fixations of a recording; ``radius`` is from :func:`radius_of`."""
    frames = np.flatnonzero(recording.present)
    rows = []
    for first, last in _runs(recording, recording.xy, extraction, radius):
        x, y = recording.xy[frames[first : last + 1]].mean(axis=0)
        seconds = float(frames[last] - frames[first]) / recording.fps
        rows.append((x, y, float(frames[first] + frames[last]) / 2 / recording.fps, seconds))
    return Scanpath(rows)


def clamped(recording: Recording, extraction: Extraction, radius: float) -> tuple[int, int]:
    """Return how many fixations exist only with, and only without, clamping gaze to the frame.

    A fixation that begins or ends at another sample is a different one and counts on both sides.
    ``radius``: as for :func:`extract`.
    """
    if not recording.outside or recording.unclamped is None:
        return 0, 0
    moved, left = (
        set(_runs(recording, xy, extraction, radius)) for xy in (recording.xy, recording.unclamped)
    )
    return len(moved - left), len(left - moved)


def _runs(
    recording: Recording, xy: Float64[np.ndarray, "frame 2"], extraction: Extraction, radius: float
) -> list[tuple[int, int]]:
    """Return the (first, last) sample of every run that lasts long enough.

    Samples are indices into the present frames; ``xy`` are the positions of gaze.
    """
    frames = np.flatnonzero(recording.present)
    xs = xy[frames, 0]
    ys = xy[frames, 1]
    first = 0
    found = []
    for last in _ends(
        frames.tolist(), xs.tolist(), ys.tolist(), radius, 1 + extraction.gap * recording.fps
    ):
        if float(frames[last] - frames[first]) / recording.fps >= extraction.min_seconds - ROUNDING:
            found.append((first, last))
        first = last + 1
    return found


def _ends(
    frames: list[int], xs: list[float], ys: list[float], radius: float, step: float
) -> list[int]:
    """Return the index of each run's last sample; ``step`` is the largest step in frames."""
    if not frames:
        return []
    ends = []
    x = xs[0]
    y = ys[0]
    limit = radius * radius
    # A plain loop over lists: each run depends on the one before, and NumPy scalars are slower.
    for index in range(1, len(frames)):
        moved = (xs[index] - x) ** 2 + (ys[index] - y) ** 2 > limit
        if moved or frames[index] - frames[index - 1] > step:
            ends.append(index - 1)
            x = xs[index]
            y = ys[index]
    return [*ends, len(frames) - 1]


def write_fixations(path: Path, scanpath: Scanpath) -> None:
    """Write a fixation CSV with the benchmark's columns, completely or not at all."""
    lines = [
        "start_time,end_time,center_x,center_y,duration,"
        "start_time_seconds,end_time_seconds,fixation_id,duration_seconds"
    ]
    for index, (x, y, middle, seconds) in enumerate(scanpath.fixations.tolist()):
        start = f"{middle - seconds / 2:.6f}"
        end = f"{middle + seconds / 2:.6f}"
        lasted = f"{seconds:.6f}"
        lines.append(f"{start},{end},{x:.6f},{y:.6f},{lasted},{start},{end},{index},{lasted}")
    write_atomically(
        path, lambda temporary: temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
    )


def n_in_corner(scanpath: Scanpath) -> int:
    """Return the number of fixations exactly at (0, 0), where the tracker had lost the eye."""
    return int((scanpath.fixations[:, :2] == 0).all(axis=1).sum())
