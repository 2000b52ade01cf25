"""The simulated viewer: dwells on objects, their fixations, and the noisy samples of a tracker.

Times are seconds of the video, positions are fractions of the frame (x to the right, y downwards, 0
at the top left).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 60  # Hz, raw samples
DWELL = (2.0, 2.6)  # s, shortest and longest dwell
FIXATION = (0.2, 0.6)  # s
SACCADE = (0.03, 0.06)  # s
SETTLED = 1.6  # s of a dwell that must precede a question's time
LOOKBACK = 0.5  # s before a question; a fixation must be active at that moment, too
MAX_OFFSET = 0.045  # of a fixation from its object's center; a quarter of a cell is 0.0625
MARGIN = 0.02  # s from a question's time to either end of the fixation around it

Position = Callable[[int, np.ndarray], np.ndarray]
"""(place, times) → (time, 2), the visible position of the place's center."""


@dataclass(frozen=True)
class Viewer:
    """One person at one tracker, in fractions of the frame.

    ``offset`` is the constant calibration error, ``noise`` the standard deviation of the samples.
    """

    name: str
    offset: tuple[float, float]
    noise: float

    @classmethod
    def random(cls, name: str, rng: np.random.Generator) -> "Viewer":
        """Draw a viewer: half are calibrated well, the others are off by up to 0.03."""
        radius = rng.uniform(0.0, 0.03) if rng.random() < 0.5 else 0.0
        angle = rng.uniform(0, 2 * math.pi)
        return cls(
            name, (radius * math.cos(angle), radius * math.sin(angle)), rng.uniform(0.002, 0.008)
        )


@dataclass(frozen=True)
class Dwell:
    """A time span in which the viewer looks at one place.

    ``asked`` is the whole second at which a question about it fits, or None.
    """

    start: float
    end: float
    asked: int | None
    place: int = -1


@dataclass(frozen=True)
class Fixation:
    """A time span in which the gaze rests (seconds), and its mean position."""

    start: float
    end: float
    x: float
    y: float


def dwell_times(rng: np.random.Generator, duration: float) -> list[Dwell]:
    """Fill ``duration`` seconds with dwells; nearly all fit a question at a whole second."""
    dwells: list[Dwell] = []
    start = rng.uniform(0.05, 0.6)
    while True:
        asked = math.ceil(start + SETTLED + 0.01)
        needed = asked + MARGIN + 0.01 - start  # shortest length that contains the question's time
        length = (
            rng.uniform(max(DWELL[0], needed), DWELL[1])
            if needed < DWELL[1]
            else rng.uniform(*DWELL)
        )
        end = round(start + length, 3)
        if end > duration - 0.05:
            return dwells
        dwells.append(Dwell(round(start, 3), end, asked if needed < DWELL[1] else None))
        start = round(end + rng.uniform(*SACCADE), 3)


def _split(rng: np.random.Generator, dwell: Dwell) -> list[tuple[float, float]]:
    """Divide a dwell into fixations and saccades; moments of questions lie inside fixations.

    Draws until a division meets all conditions.
    """
    moments = [] if dwell.asked is None else [dwell.asked - LOOKBACK, float(dwell.asked)]
    while True:
        parts = []
        start = dwell.start
        while dwell.end - start > FIXATION[1]:
            end = min(start + rng.uniform(*FIXATION), dwell.end - FIXATION[0] - SACCADE[1])
            parts.append((round(start, 3), round(end, 3)))
            start = end + rng.uniform(*SACCADE)
        parts.append((round(start, 3), dwell.end))
        if min(e - s for s, e in parts) >= FIXATION[0] - 0.002 and all(
            any(s + MARGIN <= m <= e - MARGIN for s, e in parts) for m in moments
        ):
            return parts


def trace(
    rng: np.random.Generator,
    viewer: Viewer,
    dwells: list[Dwell],
    position: Position,
    duration: float,
) -> tuple[list[Fixation], np.ndarray]:
    """Let ``viewer`` look along ``dwells``.

    Returns the fixations and the raw samples, (sample, 3): seconds, x, y, all on the frame.
    """
    times = np.arange(int(duration * SAMPLE_RATE)) / SAMPLE_RATE
    spans = []
    gaze = np.full((len(times), 2), np.nan)
    for dwell in dwells:
        for start, end in _split(rng, dwell):
            inside = (times >= start) & (times <= end)
            radius = MAX_OFFSET * math.sqrt(rng.random())
            angle = rng.uniform(0, 2 * math.pi)
            gaze[inside] = position(dwell.place, times[inside]) + radius * np.array(
                [math.cos(angle), math.sin(angle)]
            )
            spans.append((start, end, inside))
    known = ~np.isnan(gaze[:, 0])
    # Saccades are straight. Before the first and after the last fixation the gaze rests.
    for axis in range(2):
        gaze[:, axis] = np.interp(times, times[known], gaze[known, axis])
    gaze += np.array(viewer.offset) + rng.normal(0, viewer.noise, gaze.shape)
    gaze = np.clip(gaze, 0.001, 0.999)
    fixations = [
        Fixation(start, end, float(gaze[inside, 0].mean()), float(gaze[inside, 1].mean()))
        for start, end, inside in spans
    ]
    return fixations, np.column_stack([times, gaze])
