"""Read the gaze files of data sets, frame by frame, as the StreamGaze benchmark does.

Samples are mapped to the video's frames: frame k is at k / fps seconds, positions are fractions of
the frame with the origin top-left, clamped to it. Several samples of one frame are combined as in
the benchmark's code: each new one is averaged with the result so far. Samples before the start of
the video are skipped.

- egtea, ``<stem>.txt``: BeGaze export with pixels of 1280 × 960, and frame numbers or HH:MM:SS:FF
  at 24 fps;
- egoexolearn, ``<stem>.npy``: one row for each frame at 30 fps, with x, y (fractions), valid (1 or
  0);
- ego4d, ``<stem>.csv``: canonical_timestamp_s, confidence, norm_pos_x, norm_pos_y (fractions,
  origin bottom-left);
- holoassist, ``<stem>_gaze_2d.csv``: output of the benchmark's projection, with frame_idx, u, v
  (pixels of the video), valid.

[EGTEA Gaze+'s, EgoExoLearn's and Ego4D's published gaze; StreamGaze, arXiv 2512.01707, and its
released preprocessing]
"""

import csv
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import NDArray

from modulate.errors import MissingFileError, SignalError, near_matches, shown
from modulate_gaze.positions import PIXELS_FROM

Source = Literal["egtea", "egoexolearn", "ego4d", "holoassist"]
Untracked = Literal["keep", "drop"]

SOURCES: tuple[Source, ...] = get_args(Source)
SUFFIXES: Mapping[Source, str] = {
    "egtea": ".txt",
    "egoexolearn": ".npy",
    "ego4d": ".csv",
    "holoassist": "_gaze_2d.csv",
}
"""Suffixes of each source's files, after the video's stem."""

FPS: Mapping[Source, float] = {
    "egtea": 24.0,
    "egoexolearn": 30.0,
    "ego4d": 30.0,
    "holoassist": 24.46,
}
"""Frame rates that the benchmark assumes for the videos of each source."""

EGTEA_SIZE = (1280, 960)
CONFIDENCE = 0.6
"""Confidence up to which a sample of a Pupil tracker, as in Ego4D, is not gaze [Pupil Labs].

Only used if untracked samples are dropped.
"""

MAX_BYTES = 512 * 2**20
MAX_HOURS = 24


@dataclass(frozen=True, eq=False)
class Recording:
    """Gaze at every frame of a video.

    ``xy``: fractions of the frame. ``present``: frames that count; all if untracked ones are kept.
    ``fps``: frames a second. ``untracked``: number of frames without gaze. ``outside``: number of
    frames whose gaze lay outside and was clamped, which can change the fixations
    (:func:`modulate_gaze.extraction.clamped`). ``unclamped``: ``xy`` before clamping.
    """

    xy: Float64[np.ndarray, "frame 2"]
    present: Bool[np.ndarray, " frame"]
    fps: float
    untracked: int
    outside: int
    unclamped: Float64[np.ndarray, "frame 2"] | None = None

    def __len__(self) -> int:
        return len(self.xy)


def read_gaze(
    path: Path, source: Source, untracked: Untracked = "keep", size: tuple[int, int] | None = None
) -> Recording:
    """Read one recording.

    ``untracked`` is the rule for frames without gaze: "keep" gives them the benchmark's position,
    mostly (0, 0), as if the viewer had looked there; "drop" excludes them. ``size`` is the video's
    (width, height) in pixels, which only ``holoassist`` needs. Raises :class:`MissingFileError`, or
    :class:`SignalError` with file and line if the file does not have the source's format.
    """
    if source not in SOURCES:
        raise SignalError(f"Unknown source of gaze {source!r}. {near_matches(source, SOURCES)}")
    if not path.is_file():
        raise MissingFileError(
            f"There is no gaze file {path}. A recording of {source} is called <video"
            f" stem>{SUFFIXES[source]}."
        )
    if path.stat().st_size > MAX_BYTES:
        raise SignalError(
            f"{path} has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}; no gaze recording"
            " of one video is that long."
        )
    keep = untracked == "keep"
    fps = FPS[source]
    if source == "egoexolearn":
        return _dense(path, fps, keep)
    frames = _Frames(fps)
    with _text(path) as file:
        if source == "egtea":
            _read_egtea(path, file, frames, keep)
        elif source == "ego4d":
            _read_ego4d(path, file, frames, keep)
        else:
            if size is None or min(size) < 1:
                raise SignalError(
                    f"{path}: positions are pixels of the video; its size must be known. Name the"
                    " videos, or their width and height."
                )
            _read_holoassist(path, file, frames, keep, size)
    return frames.recording(path, keep)


class _Frames:
    """Collects samples by frame number."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.max_frames = int(MAX_HOURS * 3600 * fps)
        self.edge = (1.0, 1.0)
        self.positions: dict[int, tuple[float, float]] = {}
        self.last = -1
        self.lost: set[int] = set()

    def frame(self, where: str, number: float) -> int:
        if number >= self.max_frames:
            raise SignalError(
                f"{where}: frame {number:g} is in no video; the last allowed is"
                f" {self.max_frames - 1}, {MAX_HOURS} hours. Correct or remove the line."
            )
        frame = -1 if number < 0 else math.floor(number)
        self.last = max(self.last, frame)
        return frame

    def add(self, frame: int, x: float, y: float) -> None:
        if frame in self.positions:
            before = self.positions[frame]
            x = (before[0] + x) / 2
            y = (before[1] + y) / 2
        self.positions[frame] = x, y

    def recording(self, path: Path, keep: bool) -> Recording:
        if self.last < 0:
            raise SignalError(f"{path} holds no gaze sample. Is it a recording of that data set?")
        xy = np.zeros((self.last + 1, 2))
        found = np.zeros(self.last + 1, dtype=bool)
        index = np.fromiter(self.positions, dtype=np.int64, count=len(self.positions))
        xy[index] = np.array(list(self.positions.values())).reshape(-1, 2)
        found[index] = True
        tracked = found.copy()
        tracked[list(self.lost)] = False
        return _recording(xy, tracked, np.ones_like(found) if keep else found, self.fps, self.edge)


def _recording(
    xy: Float64[np.ndarray, "frame 2"],
    tracked: Bool[np.ndarray, " frame"],
    present: Bool[np.ndarray, " frame"],
    fps: float,
    edge: tuple[float, float] = (1.0, 1.0),
) -> Recording:
    # Untracked frames do not count as outside: their positions mean nothing.
    inside = np.clip(xy, 0.0, edge)
    outside = (inside != xy).any(axis=1) & tracked
    inside.setflags(write=False)
    present.setflags(write=False)
    return Recording(inside, present, fps, int((~tracked).sum()), int(outside.sum()), xy)


# --- one reader for each source


def _read_egtea(path: Path, file: TextIO, frames: _Frames, keep: bool) -> None:
    """Read either layout of EGTEA's export: 7 fields with a frame number, 26 with a time code."""
    width, height = EGTEA_SIZE
    # Clamp to the last pixel, as in the data set's own reader.
    frames.edge = ((width - 1) / width, (height - 1) / height)
    for number, line in enumerate(file, 1):
        cells = line.split()
        if not cells or line.startswith("##") or cells[0] == "Time":
            continue
        where = f"{path}, line {number}"
        if len(cells) == 7:
            x = _float(where, "x", cells[3])
            y = _float(where, "y", cells[4])
            position = _float(where, "frame", cells[5])
        elif len(cells) == 26:
            x = _float(where, "x", cells[5])
            y = _float(where, "y", cells[6])
            position = _time_code(where, cells[24], frames.fps)
        else:
            raise SignalError(
                f"{where}: {len(cells)} fields, where BeGaze's exports of EGTEA Gaze+ have 7 or 26:"
                f" {shown(line.strip())}."
            )
        frame = frames.frame(where, position)
        lost = x == 0 and y == 0
        if frame < 0:
            continue
        # A frame is lost only if none of its samples has gaze.
        if lost and frame not in frames.positions:
            frames.lost.add(frame)
        if not lost:
            frames.lost.discard(frame)
        if keep or not lost:
            frames.add(frame, x / width, y / height)


def _time_code(where: str, text: str, fps: float) -> float:
    parts = text.split(":")
    if len(parts) != 4 or not all(
        part.isascii() and part.isdigit() and len(part) < 9 for part in parts
    ):
        raise SignalError(f"{where}: {shown(text)} is no time HH:MM:SS:FF.")
    hours, minutes, seconds, frame = map(int, parts)
    if minutes > 59 or seconds > 59 or frame >= fps:
        raise SignalError(
            f"{where}: {shown(text)} is no time HH:MM:SS:FF at {fps:g} frames a second."
        )
    return (3600 * hours + 60 * minutes + seconds) * fps + frame


def _read_ego4d(path: Path, file: TextIO, frames: _Frames, keep: bool) -> None:
    names = ("canonical_timestamp_s", "confidence", "norm_pos_x", "norm_pos_y")
    for where, cells in _rows(path, file, names):
        time, confidence, x, y = (
            _float(where, name, cell, empty=math.nan)
            for name, cell in zip(names, cells, strict=True)
        )
        if math.isnan(time):
            raise SignalError(
                f"{where}: the sample has no canonical_timestamp_s. Correct or remove the line."
            )
        frame = frames.frame(where, time * frames.fps)
        if (
            frame < 0
            or math.isnan(x)
            or math.isnan(y)
            or (not keep and not confidence > CONFIDENCE)
        ):
            continue
        frames.add(frame, x, 1.0 - y)


def _read_holoassist(
    path: Path, file: TextIO, frames: _Frames, keep: bool, size: tuple[int, int]
) -> None:
    names = ("frame_idx", "u", "v", "valid")
    for where, cells in _rows(path, file, names):
        frame = frames.frame(where, _float(where, "frame_idx", cells[0]))
        u, v = (
            _float(where, name, cell, empty=math.nan)
            for name, cell in zip(("u", "v"), cells[1:3], strict=True)
        )
        if frame < 0:
            continue
        missing = math.isnan(u) or math.isnan(v)
        lost = missing or cells[3].strip().lower() not in ("true", "1", "1.0")
        if lost:
            frames.lost.add(frame)
        if keep or not lost:
            # The benchmark puts missing positions at the center.
            x, y = (0.5, 0.5) if missing else (u / size[0], v / size[1])
            frames.add(frame, x, y)


def _dense(path: Path, fps: float, keep: bool) -> Recording:
    try:
        rows = _array(path)
    # NumPy parses the header as a Python literal, which can raise almost any exception.
    except Exception as error:
        raise SignalError(
            f"{path} cannot be read as a NumPy array of numbers: {error}. Nothing else is read from"
            " .npy files, pickles never."
        ) from error
    if rows.ndim != 2 or rows.shape[1] != 3 or rows.dtype.kind not in "fiub":
        raise SignalError(
            f"{path} holds {rows.dtype} of shape {rows.shape}; EgoExoLearn's gaze has numbers of"
            " shape (frames, 3): x, y, valid."
        )
    if not 0 < len(rows) <= MAX_HOURS * 3600 * fps:
        raise SignalError(
            f"{path} holds {len(rows):,} frames; allowed are 1 to {int(MAX_HOURS * 3600 * fps):,},"
            f" {MAX_HOURS} hours."
        )
    values = np.array(rows, dtype=np.float64)
    finite: Bool[np.ndarray, " frame"] = np.isfinite(values[:, 0]) & np.isfinite(values[:, 1])
    # Only valid rows: trackers write arbitrary numbers while the eye is lost.
    pixels = np.flatnonzero(
        finite & (values[:, 2] == 1) & (np.abs(values[:, :2]) >= PIXELS_FROM).any(axis=1)
    ).tolist()
    if pixels:
        raise SignalError(
            f"{path}, frame {pixels[0]}: ({values[pixels[0], 0]:g}, {values[pixels[0], 1]:g}) looks"
            " like pixels; positions are fractions of the frame."
        )
    xy = np.where(finite[:, None], values[:, :2], 0.0)
    tracked = finite & (values[:, 2] == 1)
    return _recording(xy, tracked, np.ones_like(tracked) if keep else tracked, fps)


def _array(path: Path) -> NDArray[Any]:
    """Return the array in a .npy file.

    Never creates objects from the file's content, and a header with a wrong size allocates nothing.
    The file is read, not mapped: if another process truncated a mapped file, this one would be
    killed. Raises ValueError, and whatever NumPy's header parser raises.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format holds no plain numbers")
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, columns_first, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        size = math.prod(shape) * dtype.itemsize
        left = os.fstat(file.fileno()).st_size - file.tell()
        if size > left:
            raise ValueError(f"its header speaks of {size:,} bytes, {left:,} follow")
        data = file.read(size)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if columns_first else "C")


# --- text


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    # Latin-1 decodes any byte: exporters write names and dates in any encoding above the numbers,
    # which are ASCII.
    with path.open(encoding="latin-1", newline="") as file:
        if file.read(3) != "ï»¿":
            file.seek(0)
        yield file


def _rows(path: Path, file: TextIO, names: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Yield (place, the cells of the columns ``names``) for every line of a CSV."""
    lines = csv.reader(file)
    try:
        header = [cell.strip() for cell in next(lines, [])]
        missing = [name for name in names if name not in header]
        if missing:
            raise SignalError(
                f"{path}, line 1: the header {shown(','.join(header), 200)} lacks"
                f" {', '.join(missing)}."
            )
        columns = [header.index(name) for name in names]
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path}, line {lines.line_num}"
            if len(cells) != len(header):
                raise SignalError(
                    f"{where}: {len(cells)} values where the header names {len(header)} columns."
                    " Correct or remove the line."
                )
            yield where, [cells[column] for column in columns]
    except csv.Error as error:
        raise SignalError(
            f"{path}, line {lines.line_num}: not readable as CSV ({error}). Save it again as plain"
            " comma-separated text."
        ) from error


def _float(where: str, name: str, cell: str, empty: float | None = None) -> float:
    text = cell.strip()
    if empty is not None and text.lower() in ("", "nan"):
        return empty
    try:
        number = float(text.replace("_", "?"))  # float() accepts 1_000, but no exporter writes that
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SignalError(
            f"{where}: {name} {shown(cell)} is no number. Correct or remove the line."
        )
    return number
