"""The signal ``hand``: where the camera wearer's hand was, sampled over time."""

import csv
import math
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from modulate.errors import MissingFileError, SignalError
from modulate_gaze.positions import position_problem
from modulate_gaze.scanpath import Scanpath

COLUMNS = ("time_seconds", "x", "y")
GAP = 0.5
"""Seconds after which a sample no longer holds: the hand was not tracked until the next one."""
MAX_ROWS = 2_000_000


class HandPath(Scanpath):
    """Positions of a hand, each lasting until the next sample (at most :data:`GAP` seconds): a scanpath, so that encoders of gaze read it.

    Times, positions, controls and augmentation are those of :class:`~modulate_gaze.scanpath.Scanpath`.
    """

    kind: ClassVar[str] = "hand"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a CSV with the columns ``time_seconds`` (seconds of the video), ``x``, ``y`` (fractions of the frame, origin top-left).

        Raises :class:`MissingFileError`, and :class:`SignalError` naming file and line: times must increase.
        """
        times, positions = _samples(Path(path))
        if not times:
            return cls()
        lasts = np.minimum(np.diff(times, append=times[-1] + (float(np.median(np.diff(times))) if len(times) > 1 else GAP)), GAP)
        return cls(np.column_stack([positions, np.array(times) + lasts / 2, lasts]))


def _samples(path: Path) -> tuple[list[float], list[tuple[float, float]]]:
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist. A file of hand positions is usually called <video stem>_hand.csv.")
    times: list[float] = []
    positions: list[tuple[float, float]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (lines.fieldnames or ())]
            if missing:
                raise SignalError(f"{path}, line 1: the header lacks {', '.join(missing)}; needed are {', '.join(COLUMNS)}.")
            for row in lines:
                where = f"{path}, line {lines.line_num}"
                if len(times) == MAX_ROWS:
                    raise SignalError(f"{where}: more than {MAX_ROWS:,} samples.")
                time, x, y = (_number(where, name, row[name]) for name in COLUMNS)
                for axis, value in (("x", x), ("y", y)):
                    if problem := position_problem(axis, axis, value):
                        raise SignalError(f"{where}: {problem}")
                if times and time <= times[-1]:
                    raise SignalError(f"{where}: time_seconds {time!r} does not come after {times[-1]!r}; sort the samples and leave repeated ones out.")
                times.append(time)
                positions.append((x, y))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SignalError(f"{path} is not readable as CSV: {error}.") from error
    return times, positions


def _number(where: str, name: str, text: str | None) -> float:
    try:
        value = float((text or "").replace("_", "?"))
    except ValueError as error:
        raise SignalError(f"{where}: {name} {text!r} is no number.") from error
    if not math.isfinite(value):
        raise SignalError(f"{where}: {name} {text!r} is not finite; leave out samples without a position.")
    return value
