"""The signal ``hand``: sampled positions of the camera wearer's hand."""

import csv
import io
import math
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from modulate.errors import MissingFileError, SignalError, shown
from modulate.interfaces.signal import MAX_SECONDS, RawSamples
from modulate_gaze.detection import measured
from modulate_gaze.positions import position_problem
from modulate_gaze.scanpath import Scanpath

COLUMNS = ("time_seconds", "x", "y")
GAP = 0.5
"""Longest time, s, that a sample lasts; after that the hand was not tracked."""
MAX_ROWS = 2_000_000
MAX_BYTES = 256 * 2**20


class HandPath(Scanpath):
    """Positions of a hand, as a scanpath, so that the encoders of gaze can read it.

    Each position lasts until the next sample, for at most :data:`GAP` seconds. Times,
    positions, controls and augmentation are those of
    :class:`~modulate_gaze.scanpath.Scanpath`.
    """

    kind: ClassVar[str] = "hand"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a CSV with the columns ``time_seconds``, ``x``, ``y``.

        Times are seconds of the video and must increase; positions are fractions of the frame,
        origin top-left. Raises :class:`MissingFileError`, or :class:`SignalError` with file and
        line.
        """
        return cls.parse(_bytes(Path(path)), str(path))

    @classmethod
    def from_samples(cls, samples: RawSamples) -> Self:
        """Return the positions in samples, (sample, 2); each lasts until the next one.

        Samples with NaN are left out. Raises :class:`SignalError`.
        """
        times, positions = measured(samples)
        durations = np.full(len(times), min(1 / samples.rate, GAP))
        return cls(np.column_stack([positions, times + durations / 2, durations]))

    @classmethod
    def parse(cls, data: bytes, source: str) -> Self:
        """Return the path in ``data``, the bytes of a file; ``source`` names it in errors.

        Raises :class:`SignalError`.
        """
        times, positions = _samples(data, source)
        if not times:
            return cls()
        # The last sample has no successor, so it lasts for the median interval.
        last = float(np.median(np.diff(times))) if len(times) > 1 else GAP
        durations = np.minimum(np.diff(times, append=times[-1] + last), GAP)
        return cls(np.column_stack([positions, np.array(times) + durations / 2, durations]))


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise MissingFileError(
            f"{path} does not exist. A file of hand positions is usually called <video"
            " stem>_hand.csv."
        )
    if path.stat().st_size > MAX_BYTES:
        raise SignalError(
            f"{path} has {path.stat().st_size:,} bytes, more than the {MAX_BYTES:,} that are read."
        )
    return path.read_bytes()


def _samples(data: bytes, source: str) -> tuple[list[float], list[tuple[float, float]]]:
    times: list[float] = []
    positions: list[tuple[float, float]] = []
    try:
        lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        header = [name.strip() for name in next(lines, [])]
        columns = _columns(source, header)
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{source}, line {lines.line_num}"
            if len(times) == MAX_ROWS:
                raise SignalError(f"{where}: more than {MAX_ROWS:,} samples.")
            if len(cells) != len(header):
                raise SignalError(
                    f"{where}: {len(cells)} values where the header names {len(header)} columns."
                    " Correct or remove the line."
                )
            time, x, y = (_number(where, name, cells[index]) for name, index in columns.items())
            for axis, value in (("x", x), ("y", y)):
                problem = position_problem(axis, axis, value)
                if problem:
                    raise SignalError(f"{where}: {problem}")
            if abs(time) >= MAX_SECONDS:
                raise SignalError(
                    f"{where}: time_seconds {time!r} is no second of a video; times count from the"
                    " video's start, in seconds."
                )
            if times and time <= times[-1]:
                raise SignalError(
                    f"{where}: time_seconds {time!r} does not come after {times[-1]!r}; sort the"
                    " samples and leave repeated ones out."
                )
            times.append(time)
            positions.append((x, y))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SignalError(f"{source} is not readable as CSV: {error}.") from error
    return times, positions


def _columns(source: str, header: list[str]) -> dict[str, int]:
    """Return the index of each required column; other columns are ignored."""
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise SignalError(
            f"{source}, line 1: the header lacks {', '.join(missing)}; needed are"
            f" {', '.join(COLUMNS)}."
        )
    repeated = [name for name in COLUMNS if header.count(name) > 1]
    if repeated:
        raise SignalError(
            f"{source}, line 1: column {repeated[0]!r} appears {header.count(repeated[0])} times."
            " Remove all but one."
        )
    return {name: header.index(name) for name in COLUMNS}


def _number(where: str, name: str, text: str) -> float:
    try:
        value = float(text.replace("_", "?"))
    except ValueError as error:
        raise SignalError(f"{where}: {name} {shown(text)} is no number.") from error
    if not math.isfinite(value):
        raise SignalError(
            f"{where}: {name} {shown(text)} is not finite; leave out samples without a position."
        )
    return value
