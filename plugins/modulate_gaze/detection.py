"""Fixations in gaze samples of any recorder: identification by dispersion (I-DT).

A fixation is the longest run of samples whose dispersion, the range of x plus the range of y, stays
below a limit, if the run lasts long enough. [Salvucci and Goldberg 2000, "Identifying fixations and
saccades in eye-tracking protocols"]
"""

import math

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from modulate.errors import SignalError
from modulate.interfaces.signal import MAX_SECONDS, RawSamples

DISPERSION = 0.05
"""Default limit of the dispersion, fraction of the frame: about 2° in a view of 40° or more."""

MIN_SECONDS = 0.1
"""Default shortest fixation, s [Salvucci and Goldberg 2000]."""

MAX_GAP = 0.075
"""Longest gap in a fixation, s: samples lost to a blink or to noise of the tracker."""


def detect_fixations(
    samples: RawSamples, dispersion: float = DISPERSION, min_seconds: float = MIN_SECONDS
) -> Float64[np.ndarray, "fixation 4"]:
    """Return the fixations in gaze samples: x, y, midpoint (s), duration (s).

    Positions are means over the samples. A run ends at a gap of more than :data:`MAX_GAP`.

    Args:
        samples: (sample, 2), x and y in fractions of the frame; NaN where gaze was not measured.
        dispersion: largest range of x plus range of y within a fixation.
        min_seconds: shortest fixation, s.

    Raises :class:`SignalError`.
    """
    times, xy = measured(samples)
    interval = 1 / samples.rate
    longest_step = max(MAX_GAP, interval) + interval / 2
    found = []
    first = 0
    while first < len(times):
        last = _end_of_run(times, xy, first, dispersion, longest_step)
        # A sample stands for the interval that follows it.
        seconds = times[last] - times[first] + interval
        if seconds < min_seconds - 1e-9:
            first += 1
            continue
        x, y = xy[first : last + 1].mean(axis=0)
        found.append((x, y, times[first] + seconds / 2, seconds))
        first = last + 1
    return np.array(found, dtype=np.float64).reshape(-1, 4)


def _end_of_run(
    times: NDArray[np.float64],
    xy: NDArray[np.float64],
    first: int,
    dispersion: float,
    longest_step: float,
) -> int:
    """Return the last sample of the run from ``first`` that is close together without a gap."""
    low_x, low_y = high_x, high_y = xy[first].tolist()
    last = first
    for index in range(first + 1, len(times)):
        x, y = xy[index].tolist()
        low_x = min(low_x, x)
        high_x = max(high_x, x)
        low_y = min(low_y, y)
        high_y = max(high_y, y)
        too_wide = (high_x - low_x) + (high_y - low_y) > dispersion
        if too_wide or times[index] - times[last] > longest_step:
            break
        last = index
    return last


def measured(samples: RawSamples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return times, (sample,) s, and positions, (sample, 2), of the samples that were measured.

    Raises :class:`SignalError` for another shape, pixels, and rates or times that cannot be.
    """
    values = np.asarray(samples.values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != 2:
        raise SignalError(
            "Samples are (sample, 2): x and y in fractions of the frame; got an array of shape"
            f" {values.shape}."
        )
    if not (math.isfinite(samples.rate) and 0 < samples.rate <= 1e5):
        raise SignalError(f"The rate is samples per second, above 0; got {samples.rate!r}.")
    end = samples.start + len(values) / samples.rate
    if not (math.isfinite(samples.start) and abs(samples.start) < MAX_SECONDS > end):
        raise SignalError(
            f"Samples from {samples.start!r} s to {end!r} s lie on no video; times count from its"
            " start, in seconds."
        )
    kept = np.flatnonzero(~np.isnan(values).any(axis=1))
    return samples.start + kept / samples.rate, values[kept]
