"""Parsers of side signals: fixation CSV, hand CSV, raw gaze recordings."""

import csv
import io
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.durability.parsers.parser import Parser, through_file

ALL_COLUMNS = (
    b"start_time,end_time,center_x,center_y,duration,"
    b"start_time_seconds,end_time_seconds,fixation_id,duration_seconds\n"
)


def fixation_seeds() -> list[bytes]:
    rows = [(0.0, 2.5, 0.25, 0.75), (3.1, 5.75, 0.5, 0.125), (700.25, 704.0, -0.25, 1.25)]
    full = ALL_COLUMNS + b"".join(
        f"{a},{b},{x},{y},{b - a},{a},{b},{index},{b - a}\n".encode()
        for index, (a, b, x, y) in enumerate(rows)
    )
    short = b"start_time,duration,center_x,center_y\r\n" + b"".join(
        f"{a},{b - a},{x},{y}\r\n".encode() for a, b, x, y in rows
    )
    quoted = (
        b'\xef\xbb\xbf"center_x","center_y","end_time_seconds","duration_seconds","note"\n"0.5","0.25","4.5","2","a,'
        b' b"\n'
    )
    return [
        full,
        short,
        quoted,
        ALL_COLUMNS,
        b"center_y,center_x,end_time,start_time\n0.1,0.2,5,2\n0.1,0.2,9,8\n",
    ]


def table(data: bytes) -> tuple[list[str], list[list[str]]]:
    """Return the header and the non-blank rows of a CSV."""
    lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    header = [name.strip() for name in lines[0]]
    rows = [cells for cells in lines[1:] if any(cell.strip() for cell in cells)]
    return header, rows


def check_positions(rows: np.ndarray) -> None:
    assert rows.ndim == 2 and rows.shape[1] == 4 and np.isfinite(rows).all()
    assert ((rows[:, :2] >= -0.5) & (rows[:, :2] <= 1.5)).all() and (rows[:, 3] >= 0).all()


def check_fixations(result: np.ndarray, data: bytes) -> None:
    check_positions(result)
    header, rows = table(data)
    assert len(result) == len(rows)
    for (x, y, middle, duration), cells in zip(result, rows, strict=True):
        values = dict(zip(header, cells, strict=False))
        assert (x, y) == (float(values["center_x"]), float(values["center_y"]))
        start, end = times_of(values)
        assert math.isclose(middle - duration / 2, start, abs_tol=1e-6)
        assert math.isclose(middle + duration / 2, end, abs_tol=1e-6)
    assert len({row.tobytes() for row in result + 0.0}) == len(result)  # + 0.0: no negative zeros


def times_of(values: dict[str, str]) -> tuple[float, float]:
    """Return start and end of a fixation, s; a duration stands for the one that is missing."""

    def first(*names: str) -> float | None:
        return next((float(values[name]) for name in names if name in values), None)

    start = first("start_time_seconds", "start_time")
    end = first("end_time_seconds", "end_time")
    duration = first("duration_seconds", "duration")
    if start is None:
        assert end is not None and duration is not None
        return end - duration, end
    if end is None:
        assert duration is not None
        return start, start + duration
    return start, end


def raw_seeds(source: str) -> Callable[[], list[bytes]]:
    """Return a function that writes short recordings in the format of a data set."""
    points = [
        (0, 0.25, 0.75, 1),
        (1, 0.5, 0.5, 1),
        (1, 0.75, 0.5, 1),
        (3, 0.0, 0.0, 0),
        (9, 0.9, 0.1, 1),
    ]
    if source == "egtea":
        short = "".join(
            f"{index * 41666} SMP 1 {1280 * x} {960 * y} {k} F\n"
            for index, (k, x, y, _) in enumerate(points)
        )
        long = "".join(
            " ".join(
                ["1"] * 5 + [str(1280 * x), str(960 * y)] + ["0"] * 17 + [f"00:00:01:{k:02}", "F"]
            )
            + "\n"
            for k, x, y, _ in points
        )
        return lambda: [("## BeGaze\nTime Type Trial\n" + short).encode(), long.encode()]
    if source == "egoexolearn":
        return lambda: [
            npy(np.array([[x, y, valid] for _, x, y, valid in points])),
            npy(np.full((40, 3), 0.5, np.float32)),
        ]
    names = {
        "ego4d": "canonical_timestamp_s,confidence,norm_pos_x,norm_pos_y,other",
        "holoassist": "frame_idx,u,v,valid,t",
    }[source]
    row = {
        "ego4d": lambda k, x, y, v: f"{k / 30},{v},{x},{1 - y},a",
        "holoassist": lambda k, x, y, v: f"{k},{640 * x},{480 * y},{bool(v)},{k / 24}",
    }[source]
    return lambda: ["\n".join([names, *(row(*point) for point in points)]).encode()]


def npy(rows: np.ndarray) -> bytes:
    """Return the bytes of an array's .npy file."""
    out = io.BytesIO()
    np.save(out, rows)
    return out.getvalue()


def check_recording(result: Any, data: bytes) -> None:
    assert (
        result.xy.ndim == 2 and result.xy.shape[1] == 2 and len(result) == len(result.present) > 0
    )
    assert np.isfinite(result.xy).all() and ((result.xy >= 0) & (result.xy <= 1)).all()
    assert (
        0 <= result.untracked <= len(result)
        and 0 <= result.outside <= len(result) - result.untracked
        and len(result) <= 24 * 3600 * result.fps + 1
    )


def hand_seeds() -> list[bytes]:
    rows = [(0.0, 0.25, 0.75), (0.25, 0.3, 0.7), (2.5, -0.1, 1.2)]
    return [
        b"time_seconds,x,y\n" + b"".join(f"{t},{x},{y}\n".encode() for t, x, y in rows),
        b"y,note,x,time_seconds\r\n.5,a,.5,1\r\n",
        b"time_seconds,x,y\n",
    ]


def check_hand(result: Any, data: bytes) -> None:
    check_positions(result.fixations)
    header, rows = table(data)
    times = [float(cells[header.index("time_seconds")]) for cells in rows]
    assert len(result) == len(rows) and all(b > a for a, b in itertools.pairwise(times))
    for found, cells, time in zip(result.fixations, rows, times, strict=True):
        assert (found[0], found[1]) == (
            float(cells[header.index("x")]),
            float(cells[header.index("y")]),
        )
        assert math.isclose(found[2] - found[3] / 2, time, abs_tol=1e-6) and found[3] <= 0.5


def parsers() -> list[Parser]:
    """Return the parsers of side signals."""
    from modulate_gaze.fixation_csv import parse_fixations, read_fixations
    from modulate_hand.path import HandPath

    fixations = Parser(
        name="fixations",
        what="fixation CSV",
        seeds=fixation_seeds,
        parse=lambda data: parse_fixations(data, "f.csv"),
        check=check_fixations,
        modules=("modulate_gaze.fixation_csv",),
        read=read_fixations,
    )
    hand = Parser(
        name="hand",
        what="hand CSV",
        seeds=hand_seeds,
        parse=lambda data: HandPath.parse(data, "h.csv"),
        check=check_hand,
        modules=("modulate_hand.path",),
        read=HandPath.read,
    )
    return [fixations, hand]


RECORDING = ("_recording", "_float", "frame", "add", "recording")
RAW_GAZE_FUNCTIONS = {
    "egtea": ("_read_egtea", "_time_code", *RECORDING),
    "ego4d": ("_read_ego4d", "_rows", *RECORDING),
    "holoassist": ("_read_holoassist", "_rows", *RECORDING),
    "egoexolearn": ("_dense",),
}
"""Functions that read each data set; `read_gaze` only chooses among them by name."""


def raw_gaze_parsers() -> list[Parser]:
    """Return the parsers of raw gaze, one for each data set."""
    return [
        Parser(
            name=source,
            what=f"raw gaze of {source}",
            seeds=raw_seeds(source),
            parse=parse_raw_gaze(source),
            check=check_recording,
            modules=("modulate_gaze.raw_gaze",),
            only=functions,
        )
        for source, functions in RAW_GAZE_FUNCTIONS.items()
    ]


def parse_raw_gaze(source: str) -> Callable[[bytes], Any]:
    """Return the parser of one data set's recordings."""
    from modulate_gaze.raw_gaze import SUFFIXES, read_gaze

    def read(path: Path) -> Any:
        # The file's size chooses the rule for points outside, so that both rules are tried.
        outside = "drop" if path.stat().st_size % 2 else "keep"
        return read_gaze(path, source, outside, (640, 480))

    return through_file(read, f"raw{SUFFIXES[source]}")
