"""Read the fixation files of StreamGaze, ``<video stem>_fixation_filtered.csv``.

The header names the columns, in any order; unknown columns are ignored. Positions are fractions of
the frame with the origin top-left, times are seconds of the video. Time columns have several names,
and any two of start, end and duration suffice. A header without rows is valid: the viewer never
fixated. [StreamGaze, arXiv 2512.01707, and its released files]
"""

import csv
import io
import math
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from modulate.errors import MissingFileError, SignalError, shown
from modulate.interfaces.signal import MAX_SECONDS
from modulate_gaze.positions import position_problem

ALIASES: dict[str, tuple[str, ...]] = {
    "x": ("center_x",),
    "y": ("center_y",),
    "start": ("start_time_seconds", "start_time"),
    "end": ("end_time_seconds", "end_time"),
    "duration": ("duration_seconds", "duration"),
}
"""Possible names of each column; the first existing one counts, so names with a unit win."""

MAX_BYTES = 256 * 2**20
MAX_ROWS = 2_000_000


def read_fixations(path: Path) -> Float64[np.ndarray, "fixation 4"]:
    """Return x, y (fractions of the frame), midpoint and duration (seconds), in the file's order.

    Raises :class:`MissingFileError`, or :class:`SignalError` with file, line, column and value.
    """
    return parse_fixations(_bytes(path), str(path))


def parse_fixations(data: bytes, source: str) -> Float64[np.ndarray, "fixation 4"]:
    """Return the fixations in ``data``, the bytes of a file; ``source`` names it in errors.

    Raises :class:`SignalError`.
    """
    lines = csv.reader(io.StringIO(_text(data, source), newline=""))
    values = array("d")
    numbers = array("q")
    try:
        header = [name.strip() for name in next(lines, [])]
        columns = _columns(source, header)
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if len(numbers) == MAX_ROWS:
                raise SignalError(
                    f"{source}, line {lines.line_num}: more than {MAX_ROWS:,} fixations. This"
                    " reader takes fixations, not raw gaze samples."
                )
            values.extend(_row(f"{source}, line {lines.line_num}", cells, header, columns))
            numbers.append(lines.line_num)
    except csv.Error as error:
        raise SignalError(
            f"{source}, line {lines.line_num}: not readable as CSV ({error}). Save it again as"
            " plain comma-separated text."
        ) from error
    rows = np.array(values).reshape(-1, 4)
    _check_repeated(source, rows, numbers)
    return rows


def _check_repeated(
    source: str, rows: Float64[np.ndarray, "fixation 4"], numbers: Sequence[int]
) -> None:
    """Raise for repeated rows, because encoders would count the fixation twice."""
    order = np.lexsort(rows.T)  # stable: equal rows keep the file's order
    same = np.flatnonzero((rows[order[1:]] == rows[order[:-1]]).all(axis=1))
    if len(same):
        first, second = min((int(order[index]), int(order[index + 1])) for index in same)
        raise SignalError(
            f"{source}, line {numbers[second]}: the fixation of line {numbers[first]} once more"
            f" ({len(same)} such lines in all). Remove repeated lines."
        )


def _bytes(path: Path) -> bytes:
    if not path.exists():
        raise MissingFileError(
            f"{path} does not exist. A fixation file is usually called <video"
            " stem>_fixation_filtered.csv; check the folder and the name."
        )
    if not path.is_file():
        raise SignalError(f"{path} is no file. Name the fixation CSV itself.")
    if path.stat().st_size > MAX_BYTES:
        raise SignalError(
            f"{path} has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}. This reader takes"
            " fixations, not raw gaze samples."
        )
    return path.read_bytes()


def _text(data: bytes, source: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SignalError(
            f"{source} is no text: byte {error.start} is not UTF-8. Save it again as UTF-8 CSV."
        ) from error
    if not text.strip():
        raise SignalError(
            f"{source} is empty. A clip without fixations still needs the header line, e.g."
            " start_time,end_time,center_x,center_y."
        )
    return text


def _columns(source: str, header: list[str]) -> dict[str, int]:
    """Return the index of each quantity's column."""
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise SignalError(
            f"{source}, line 1: column {shown(repeated[0])} appears {header.count(repeated[0])}"
            " times. Remove all but one."
        )
    found = {
        what: next((header.index(name) for name in names if name in header), -1)
        for what, names in ALIASES.items()
    }
    columns = {what: index for what, index in found.items() if index >= 0}
    missing = [ALIASES[what][0] for what in ("x", "y") if what not in columns]
    if len(columns.keys() & {"start", "end", "duration"}) < 2:
        missing.append(
            "two of " + ", ".join("/".join(ALIASES[what]) for what in ("start", "end", "duration"))
        )
    if missing:
        hint = (
            " It seems to be separated by something other than commas."
            if len(header) == 1 and any(mark in header[0] for mark in ";\t")
            else ""
        )
        raise SignalError(
            f"{source}, line 1: the header {shown(','.join(header), 200)} lacks"
            f" {' and '.join(missing)}.{hint} Rename or add the columns."
        )
    return columns


def _row(
    where: str, cells: list[str], header: list[str], columns: Mapping[str, int]
) -> tuple[float, float, float, float]:
    if len(cells) != len(header):
        raise SignalError(
            f"{where}: {len(cells)} values where the header names {len(header)} columns. Correct or"
            " remove the line."
        )
    value = {what: _number(where, header[index], cells[index]) for what, index in columns.items()}
    for axis in ("x", "y"):
        problem = position_problem(axis, header[columns[axis]], value[axis])
        if problem:
            raise SignalError(f"{where}: {problem}")
    start, end = _interval(where, value, {what: header[index] for what, index in columns.items()})
    return value["x"], value["y"], (start + end) / 2, end - start


def _number(where: str, column: str, cell: str) -> float:
    try:
        number = float(cell.replace("_", "?"))  # float() accepts 1_000, but no exporter writes that
    except ValueError as error:
        raise SignalError(
            f"{where}: {column} {shown(cell)} is no number. Correct or remove the line."
        ) from error
    if not math.isfinite(number):
        raise SignalError(
            f"{where}: {column} {shown(cell)} is not finite. Remove fixations without a position or"
            " time."
        )
    return number


def _interval(
    where: str, value: Mapping[str, float], names: Mapping[str, str]
) -> tuple[float, float]:
    """Return (start, end) of a row; raise SignalError if its times contradict each other."""
    for what in ("start", "end", "duration"):
        if abs(value.get(what, 0.0)) >= MAX_SECONDS:
            raise SignalError(
                f"{where}: {names[what]} {value[what]!r} is no second of a video; times count from"
                " the video's start, in seconds. Subtract that, or convert the unit."
            )
    duration = value.get("duration")
    if duration is not None and duration < 0:
        raise SignalError(
            f"{where}: {names['duration']} {duration!r} is negative. Durations are seconds ≥ 0."
        )
    if "end" not in value:
        return value["start"], value["start"] + value["duration"]
    if "start" not in value:
        return value["end"] - value["duration"], value["end"]
    start = value["start"]
    end = value["end"]
    if end < start:
        raise SignalError(
            f"{where}: {names['end']} {end!r} lies before {names['start']} {start!r}: a negative"
            " duration. Swap or correct them."
        )
    # The tolerance allows for rounding and for exporters that count one frame more, but still
    # detects milliseconds.
    if duration is not None and abs(end - start - duration) > max(0.2, 0.2 * (end - start)):
        stated = f"{names['end']} − {names['start']} = {end - start:.3f} s"
        raise SignalError(
            f"{where}: {names['duration']} {duration!r} contradicts {stated}. All times are"
            " seconds; correct the wrong one."
        )
    return start, end
