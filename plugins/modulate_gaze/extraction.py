"""Fixations from gaze samples, as the StreamGaze benchmark extracts them (:data:`PRESETS`), and the
files that hold them.

Anchored dispersion: a run goes on while its samples stay within a radius of the run's *first*
sample; x and y are fractions of the frame's width and height, so that the radius is an ellipse in
pixels. The first sample beyond it ends the run and begins the next. A run that lasts long enough is
a fixation: its centre is the mean of its samples, its duration the time from its first sample to
its last.

The benchmark forgives a sample beyond the radius that comes within 0.01 s of the one before; at 24
to 30 samples a second none does, so that a single one always ends a run. Taken as a limit on the
time between two samples, 0.01 s would end every run at its first sample. Here it is what the time
between two samples may exceed their nominal interval by: where frames are missing (``untracked:
drop``), the run ends.

Not done here is what the benchmark does next with the video at hand: it leaves out fixations on
black frames, and those during which the picture changes (correlation of color histograms below
0.9; 0.5 for HoloAssist). So these files hold a little more than its own. [StreamGaze, arXiv
2512.01707, and its released preprocessing]
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
"""Fractions of the frame. They are 96 pixels of the two sources' videos; the others' radius is 96
pixels of theirs.
"""

PIXELS = 96
ROUNDING = 1e-6
"""Seconds: 2.5 s is as long as 2.5 s, however many frames it is the difference of."""


class Extraction(BaseModel):
    """How fixations are made of gaze samples; the defaults are the benchmark's."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    radius: float | None = Field(
        None,
        gt=0,
        description=(
            "of a fixation, fraction of the frame; null: the benchmark's for the source (egtea"
            " 0.15, ego4d 0.088, others 96 pixels of the width)"
        ),
    )
    min_seconds: PositiveFloat = Field(
        2.5,
        description=(
            "shortest fixation, s [StreamGaze: 2 while extracting, 2.5 in a later step, which the"
            " files that GazeQwen ships have not been through: 2]"
        ),
    )
    gap: float = Field(
        0.01,
        ge=0,
        description=(
            "s by which the time between two samples may exceed their interval before it ends a"
            " fixation [StreamGaze: 0.01]"
        ),
    )
    untracked: Untracked = Field(
        "keep",
        description=(
            "samples without gaze: keep them where the benchmark has them, mostly at (0, 0), which"
            " can make a fixation there; or drop them"
        ),
    )


PRESETS: Mapping[str, Extraction] = {
    "streamgaze": Extraction(),
    "gazeqwen": Extraction(min_seconds=2.0),
}
"""By name: ``streamgaze`` as the benchmark's code states it, both steps; ``gazeqwen`` its first
step alone. The one fixation file that GazeQwen
ships fits the latter: 16 of its 35 fixations last 2.04 to 2.42 s, and the later step's 2.5 s would
have left them out.
"""


def radius_of(source: Source, extraction: Extraction, width: int | None = None) -> float:
    """Return the radius in fractions of the frame; ``width``: of the video, pixels.

    Raises :class:`SignalError` when that is needed and not known.
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
    """Return the fixations of a recording. ``radius``: fraction of the frame (:func:`radius_of`)."""
    frames = np.flatnonzero(recording.present)
    rows = []
    for first, last in _runs(recording, recording.xy, extraction, radius):
        x, y = recording.xy[frames[first : last + 1]].mean(axis=0)
        seconds = float(frames[last] - frames[first]) / recording.fps
        rows.append((x, y, float(frames[first] + frames[last]) / 2 / recording.fps, seconds))
    return Scanpath(rows)


def clamped(recording: Recording, extraction: Extraction, radius: float) -> tuple[int, int]:
    """Return how many fixations exist only because gaze outside the frame is moved to its edge, and
    how many exist only where it is not.

    A fixation that begins or ends at another sample is another one: it counts on both sides.
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
    """Return the (first, last) sample of every run that lasts long enough, counted among the frames
    that take part; ``xy``: where gaze was.
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
    """Return the index of every run's last sample; ``step``: most frames from a sample to the next."""
    ends, x, y, limit = [], *((xs[0], ys[0]) if frames else (0.0, 0.0)), radius * radius
    for i in range(1, len(frames)):
        if (xs[i] - x) ** 2 + (ys[i] - y) ** 2 > limit or frames[i] - frames[i - 1] > step:
            ends.append(i - 1)
            x = xs[i]
            y = ys[i]
    return ends + ([len(frames) - 1] if frames else [])


def write_fixations(path: Path, scanpath: Scanpath) -> None:
    """Write a fixation CSV with the columns of the benchmark's files: whole or not at all."""
    lines = [
        "start_time,end_time,center_x,center_y,duration,start_time_seconds,end_time_seconds,fixation_id,duration_seconds"
    ]
    for i, (x, y, middle, seconds) in enumerate(scanpath.fixations.tolist()):
        start = f"{middle - seconds / 2:.6f}"
        end = f"{middle + seconds / 2:.6f}"
        lasted = f"{seconds:.6f}"
        lines.append(f"{start},{end},{x:.6f},{y:.6f},{lasted},{start},{end},{i},{lasted}")
    write_atomically(
        path, lambda temporary: temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")
    )


def n_in_corner(scanpath: Scanpath) -> int:
    """Return how many fixations lie exactly at (0, 0): nobody looked there, the tracker had lost
    the eye.
    """
    return int((scanpath.fixations[:, :2] == 0).all(axis=1).sum())
