"""The scanpath: positions, times and durations of a viewer's fixations."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field

from modulate.errors import SignalError
from modulate.interfaces.signal import (
    COMMON_CONTROLS,
    Control,
    ControlContext,
    Mark,
    RawSamples,
    Signal,
)
from modulate_gaze.detection import detect_fixations
from modulate_gaze.fixation_csv import read_fixations
from modulate_gaze.positions import OFF_SCREEN, position_problem


class Augmentation(BaseModel):
    """Strength of the perturbation of scanpaths in training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sigma: float = Field(
        default=0.02,
        ge=0,
        description=(
            "standard deviation of the noise on x and y, fraction of the frame [GazeQwen code:"
            " 0.02]"
        ),
    )
    drop: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description=("probability of dropping a fixation; one always remains [GazeQwen code: 0.1]"),
    )


@dataclass(frozen=True, init=False, eq=False)
class Scanpath(Signal):
    """Fixations of one viewer on one video, sorted by time. Immutable.

    ``fixations``: (fixation, 4) float64, read-only: x, y in fractions of the frame (origin
    top-left), midpoint in seconds of the video, duration in seconds ≥ 0. ``n_resorted``: number of
    fixations that followed a later one in the input; copies keep it.

    Gaze slightly past the frame's edge (:data:`~modulate_gaze.positions.OFF_SCREEN`) stays
    unchanged and is counted by ``n_outside``. Raises :class:`SignalError` for a wrong shape, NaN,
    infinity, negative durations, and pixel units.
    """

    kind: ClassVar[str] = "gaze"
    controls: ClassVar[Mapping[str, Control]]

    fixations: Float64[np.ndarray, "fixation 4"]
    n_resorted: int

    def __init__(self, fixations: ArrayLike = (), n_resorted: int = 0) -> None:
        rows = np.asarray(fixations, dtype=np.float64).copy()
        rows = rows.reshape(0, 4) if rows.size == 0 else rows
        _check(rows)
        times = rows[:, 2]
        behind = int((times < np.maximum.accumulate(times)).sum()) if len(rows) else 0
        # Stable: fixations at the same time keep their order.
        rows = rows[np.argsort(times, kind="stable")]
        rows.setflags(write=False)
        object.__setattr__(self, "fixations", rows)
        object.__setattr__(self, "n_resorted", n_resorted + behind)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a fixation CSV, see :mod:`modulate_gaze.fixation_csv`.

        Raises :class:`SignalError` with file and line.
        """
        return cls(read_fixations(Path(path)))

    @classmethod
    def from_samples(cls, samples: RawSamples) -> Self:
        """Return the fixations in gaze samples, (sample, 2): x and y in fractions of the frame.

        See :func:`modulate_gaze.detection.detect_fixations`. Raises :class:`SignalError`.
        """
        return cls(detect_fixations(samples))

    @property
    def starts(self) -> Float64[np.ndarray, " fixation"]:
        """Start of each fixation, seconds."""
        return self.fixations[:, 2] - self.fixations[:, 3] / 2

    @property
    def ends(self) -> Float64[np.ndarray, " fixation"]:
        """End of each fixation, seconds."""
        return self.fixations[:, 2] + self.fixations[:, 3] / 2

    @property
    def n_outside(self) -> int:
        """Number of fixations outside the frame: x or y not in [0, 1]."""
        positions = self.fixations[:, :2]
        return int(((positions < 0) | (positions > 1)).any(axis=1).sum())

    def span(self) -> tuple[float, float] | None:
        """Return the (start, end) of the fixations in seconds; None without any."""
        return (float(self.starts.min()), float(self.ends.max())) if len(self) else None

    def within(self, start: float, end: float) -> Self:
        """Return the fixations that overlap [start, end] seconds, unchanged."""
        return self._with(self.fixations[(self.starts <= end) & (self.ends >= start)])

    def moved(self, seconds: float) -> Self:
        """Return a copy with all times shifted by ``seconds``."""
        return self._with(self.fixations + np.array([0.0, 0.0, seconds, 0.0]))

    def blank(self) -> Self:
        """Return a scanpath without fixations."""
        return self._with(self.fixations[:0])

    def augmented(self, rng: random.Random, augmentation: Augmentation = Augmentation()) -> Self:  # noqa: B008  (frozen)
        """Return a copy with noisy positions and without some fixations; at least one remains.

        Positions inside the frame stay inside, as in the released code; those outside are not
        clamped to it.
        """
        keep = [row for row in self.fixations if rng.random() >= augmentation.drop]
        if not keep and len(self):
            keep = [self.fixations[rng.randrange(len(self))]]
        rows = np.array(keep).reshape(-1, 4)
        # Positions that start outside may move within OFF_SCREEN, but not beyond.
        noise = np.array(
            [rng.gauss(0.0, augmentation.sigma) for _ in range(2 * len(rows))]
        ).reshape(-1, 2)
        inside = (rows[:, :2] >= 0) & (rows[:, :2] <= 1)
        low, high = OFF_SCREEN
        rows[:, :2] = np.clip(
            rows[:, :2] + noise, np.where(inside, 0.0, low), np.where(inside, 1.0, high)
        )
        return self._with(rows)

    def marks(self, start: float, end: float) -> tuple[Mark, ...]:
        """Return the fixations that overlap [start, end] seconds."""
        return tuple(
            Mark(x, y, f"{middle - lasts / 2:.2f}–{middle + lasts / 2:.2f} s")
            for x, y, middle, lasts in self.within(start, end).fixations.tolist()
        )

    def _with(self, rows: Float64[np.ndarray, "fixation 4"]) -> Self:
        return type(self)(rows, self.n_resorted)

    def __len__(self) -> int:
        return len(self.fixations)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scanpath) and np.array_equal(self.fixations, other.fixations)

    __hash__ = None  # type: ignore[assignment]


def _check(rows: Float64[np.ndarray, "..."]) -> None:
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise SignalError(
            "A scanpath has four values for each fixation (x, y, midpoint s, duration s); got an"
            f" array of shape {rows.shape}."
        )
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        i, k = bad[0]
        raise SignalError(
            f"Fixation {i}: {('x', 'y', 'midpoint', 'duration')[k]} {float(rows[i, k])!r} is not"
            " finite. Leave such fixations out."
        )
    negative = np.flatnonzero(rows[:, 3] < 0)
    if len(negative):
        raise SignalError(
            f"Fixation {negative[0]}: duration {float(rows[negative[0], 3])!r} is negative."
            " Durations are seconds ≥ 0."
        )
    low, high = OFF_SCREEN
    for i, k in np.argwhere((rows[:, :2] < low) | (rows[:, :2] > high))[:1]:
        raise SignalError(f"Fixation {i}: {position_problem('xy'[k], 'xy'[k], float(rows[i, k]))}")


def center(signal: Any, context: ControlContext) -> Scanpath:
    """Control: the same times, with every fixation at the frame's center."""
    rows = signal.fixations.copy()
    rows[:, :2] = 0.5
    return type(signal)(rows, signal.n_resorted)


def shifted(signal: Any, context: ControlContext) -> Scanpath:
    """Control: the clip's own gaze, half a window later, wrapped around at the window's end.

    Gaze is active for the same time, but belongs to another moment. Fixations are first clipped to
    the window, because the outer parts do not belong to the sample. A fixation that crosses the end
    is split in two.
    """
    window_start, window_end = context.window
    length = window_end - window_start
    if length <= 0:
        return signal
    starts = np.clip(signal.starts, window_start, window_end)
    ends = np.clip(signal.ends, window_start, window_end)
    inside = ends > starts
    # Fixations without duration have no overlap, but count if their instant lies inside.
    inside |= (
        (signal.fixations[:, 3] == 0)
        & (signal.fixations[:, 2] >= window_start)
        & (signal.fixations[:, 2] <= window_end)
    )
    rows = []
    for (x, y), start, end in zip(
        signal.fixations[inside, :2], starts[inside], ends[inside], strict=True
    ):
        moved = window_start + (start - window_start + length / 2) % length
        over = max(0.0, moved + (end - start) - window_end)
        pieces = [(moved, moved + (end - start) - over)] + (
            [(window_start, window_start + over)] if over else []
        )
        rows += [(x, y, (a + b) / 2, b - a) for a, b in pieces]
    return type(signal)(rows, signal.n_resorted)


Scanpath.controls = {**COMMON_CONTROLS, "centre": center, "shifted": shifted}
