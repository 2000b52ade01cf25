"""Reading fixation files: valid layouts, and the message for each kind of bad input."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modulate.errors import MissingFileError, SignalError
from modulate_gaze import fixation_csv
from modulate_gaze.scanpath import Scanpath

HEADER = (
    "start_time,end_time,center_x,center_y,duration,"
    "start_time_seconds,end_time_seconds,fixation_id,duration_seconds\n"
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "clip_fixation_filtered.csv"

    def write(text):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def error_of(path):
    with pytest.raises(SignalError) as caught:
        Scanpath.read(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


def test_a_file_with_the_full_header_gives_positions_midpoints_and_durations(file):
    path = file(
        HEADER + "1.0,3.5,0.25,0.75,2.5,1.0,3.5,0,2.5\n4.0,7.0,0.5,0.125,3.0,4.0,7.0,1,3.0\n"
    )
    assert Scanpath.read(path).fixations.tolist() == [
        [0.25, 0.75, 2.25, 2.5],
        [0.5, 0.125, 5.5, 3.0],
    ]


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("start_time,end_time", "2,5"),
        ("start_time_seconds,duration_seconds", "2,3"),
        ("start_time,duration", "2,3"),
        ("end_time_seconds,duration", "5,3"),
        ("duration_seconds,end_time", "3,5"),
        ("end_time,start_time_seconds,duration", "5,2,3"),
    ],
)
def test_any_two_of_start_end_and_duration_are_enough_under_any_of_their_names(file, header, row):
    assert Scanpath.read(
        file(f"{header},center_y,center_x\n{row},0.2,0.1\n")
    ).fixations.tolist() == [[0.1, 0.2, 3.5, 3.0]]


def test_the_name_that_states_seconds_wins_over_the_one_that_does_not(file):
    text = (
        "start_time,start_time_seconds,duration_seconds,center_x,center_y\n00:00:02,2,3,0.1,0.2\n"
    )
    assert Scanpath.read(file(text)).fixations.tolist() == [[0.1, 0.2, 3.5, 3.0]]


def test_byte_order_mark_spaces_blank_lines_and_windows_line_ends_do_not_matter(file):
    text = "\ufeffstart_time , end_time,center_x,center_y\r\n\r\n 2 , 5 ,0.1,0.2\r\n , , , \r\n"
    assert Scanpath.read(file(text)).fixations.tolist() == [[0.1, 0.2, 3.5, 3.0]]


def test_unsorted_fixations_are_sorted_and_counted(file):
    rows = ["8,9,0.3,0", "0,1,0.1,0", "4,5,0.2,0", "9,9.5,0.4,0"]
    scanpath = Scanpath.read(file("start_time,end_time,center_x,center_y\n" + "\n".join(rows)))
    assert scanpath.fixations[:, 0].tolist() == [0.1, 0.2, 0.3, 0.4]
    assert scanpath.n_resorted == 2


def test_a_header_without_rows_is_an_empty_scanpath(file):
    scanpath = Scanpath.read(file(HEADER))
    assert len(scanpath) == 0 and scanpath.fixations.shape == (0, 4)


def test_gaze_slightly_off_screen_is_kept_as_it_is_and_counted(file):
    scanpath = Scanpath.read(
        file("start_time,end_time,center_x,center_y\n0,1,-0.5,0.5\n1,2,0.5,1.5\n2,3,0,1\n")
    )
    assert scanpath.fixations[:, :2].tolist() == [[-0.5, 0.5], [0.5, 1.5], [0, 1]]
    assert scanpath.n_outside == 2


def test_a_missing_file_is_named_with_what_to_check(tmp_path):
    path = tmp_path / "nowhere.csv"
    message = (
        f"{path} does not exist. A fixation file is usually called <video"
        " stem>_fixation_filtered.csv; check the folder and the name."
    )
    with pytest.raises(MissingFileError, match=re.escape(message)):
        Scanpath.read(path)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    assert error_of(tmp_path) == " is no file. Name the fixation CSV itself."


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_an_empty_file_is_refused_and_told_how_to_say_no_fixations(file, text):
    assert (
        error_of(file(text))
        == " is empty. A clip without fixations still needs the header line, e.g."
        " start_time,end_time,center_x,center_y."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1.0,3.5,0.25,0.75\n",
            (
                ", line 1: the header '1.0,3.5,0.25,0.75' lacks center_x and center_y and two of"
                " start_time_seconds/start_time, end_time_seconds/end_time,"
                " duration_seconds/duration. Rename or add the columns."
            ),
        ),
        (
            "start_time,center_x,center_y\n1,0,0\n",
            (
                ", line 1: the header 'start_time,center_x,center_y' lacks two of"
                " start_time_seconds/start_time, end_time_seconds/end_time,"
                " duration_seconds/duration. Rename or add the columns."
            ),
        ),
        (
            "center_x;center_y;start_time;end_time\n",
            (
                ", line 1: the header 'center_x;center_y;start_time;end_time' lacks center_x and"
                " center_y and two of start_time_seconds/start_time, end_time_seconds/end_time,"
                " duration_seconds/duration. It seems to be separated by something other than"
                " commas. Rename or add the columns."
            ),
        ),
        (
            "center_x,center_x,center_y,start_time,end_time\n",
            ", line 1: column 'center_x' appears 2 times. Remove all but one.",
        ),
    ],
)
def test_a_header_that_does_not_serve_is_refused(file, text, message):
    assert error_of(file(text)) == message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,1,0.5", "3 values where the header names 5 columns. Correct or remove the line."),
        (
            "0,1,1,0.5,0.5,9",
            "6 values where the header names 5 columns. Correct or remove the line.",
        ),
        ("0,1,1,left,0.5", "center_x 'left' is no number. Correct or remove the line."),
        ("0,1,1,,0.5", "center_x '' is no number. Correct or remove the line."),
        ("0,1_0,1,0.5,0.5", "end_time '1_0' is no number. Correct or remove the line."),
        (
            "0,1,1,0.5,nan",
            "center_y 'nan' is not finite. Remove fixations without a position or time.",
        ),
        (
            "0,inf,1,0.5,0.5",
            "end_time 'inf' is not finite. Remove fixations without a position or time.",
        ),
        ("0,1,-1.0,0.5,0.5", "duration -1.0 is negative. Durations are seconds ≥ 0."),
        (
            "2.0,1.5,0.5,0.5,0.5",
            "end_time 1.5 lies before start_time 2.0: a negative duration. Swap or correct them.",
        ),
        (
            "0,2.4,2400,0.5,0.5",
            (
                "duration 2400.0 contradicts end_time − start_time = 2.400 s. All times are"
                " seconds; correct the wrong one."
            ),
        ),
        (
            "0,1,1,640.0,360.0",
            (
                "center_x 640.0 looks like pixels; divide by the frame's width so that positions"
                " lie in [0, 1], origin top-left."
            ),
        ),
        (
            "0,1,1,0.5,-12",
            (
                "center_y -12.0 looks like pixels; divide by the frame's height so that positions"
                " lie in [0, 1], origin top-left."
            ),
        ),
        (
            "0,1,1,1.6,0.5",
            (
                "center_x 1.6 is too far off-screen: allowed are -0.5 to 1.5 of the frame's width."
                " Correct or remove the fixation."
            ),
        ),
    ],
)
def test_a_bad_row_is_refused_with_its_line_column_and_value(file, row, message):
    text = f"start_time,end_time,duration,center_x,center_y\n0,1,1,0.5,0.5\n\n{row}\n"
    assert error_of(file(text)) == f", line 4: {message}"


def test_a_row_that_stands_there_twice_is_refused_with_both_lines(file):
    text = (
        "start_time,duration,center_x,center_y\n"
        "4,1,0.5,0.5\n0,1,0.25,0.5\n\n4,1.0,0.5,.5\n0,1,0.25,0.5\n"
    )
    assert (
        error_of(file(text))
        == ", line 5: the fixation of line 2 once more (2 such lines in all). Remove repeated"
        " lines."
    )


@pytest.mark.parametrize(
    ("column", "row"),
    [
        ("start_time", "1.7e9,1,0.5,0.5"),
        ("duration", "1,1e300,0.5,0.5"),
        ("start_time", "-2e7,1,0.5,0.5"),
    ],
)
def test_times_of_a_clock_and_of_other_units_are_refused(file, column, row):
    message = error_of(file("start_time,duration,center_x,center_y\n" + row))
    assert (
        message.startswith(f", line 2: {column} ")
        and "is no second of a video; times count from the video's start, in seconds." in message
    )


def test_a_long_cell_makes_a_short_message(file):
    assert (
        len(
            error_of(
                file("start_time,duration,center_x,center_y\n1," + "9" * 100_000 + "x,0.5,0.5")
            )
        )
        < 300
    )
    assert len(error_of(file("start_time," * 2 + "x" * 100_000))) < 500


def test_bytes_that_are_no_text_are_refused(file):
    assert (
        error_of(file(b"center_x\xff"))
        == " is no text: byte 8 is not UTF-8. Save it again as UTF-8 CSV."
    )


def test_text_that_is_no_csv_is_refused(file):
    message = error_of(file("start_time,end_time,center_x,center_y\n0,1,0.5," + "5" * 200_000))
    assert message.startswith(
        ", line 2: not readable as CSV (field larger than field limit"
    ) and message.endswith("Save it again as plain comma-separated text.")


def test_files_and_row_counts_of_raw_gaze_samples_are_refused(file, monkeypatch):
    path = file("start_time,end_time,center_x,center_y\n0,1,0,0\n1,2,0,0\n2,3,0,0\n")
    monkeypatch.setattr(fixation_csv, "MAX_ROWS", 2)
    assert (
        error_of(path)
        == ", line 4: more than 2 fixations. This reader takes fixations, not raw gaze samples."
    )
    monkeypatch.setattr(fixation_csv, "MAX_BYTES", 10)
    assert (
        error_of(path)
        == " has 62 bytes, more than 10. This reader takes fixations, not raw gaze samples."
    )


def apart(row):
    """Compare equal only to rows that the reader would refuse as repeated."""
    return row[0], row[1], round(row[2], 3), round(row[3], 3)


fixations = st.lists(
    st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5), st.floats(0, 3600), st.floats(0, 60)),
    max_size=8,
    unique_by=apart,
)


@settings(deadline=None, max_examples=60)
@given(
    fixations,
    st.permutations(["center_x", "center_y", "start_time", "duration_seconds", "fixation_id"]),
)
def test_what_is_written_is_what_is_read(tmp_path_factory, rows, columns):
    path = tmp_path_factory.mktemp("csv") / "f.csv"
    named = [
        {
            "center_x": x,
            "center_y": y,
            "start_time": start,
            "duration_seconds": d,
            "fixation_id": index,
        }
        for index, (x, y, start, d) in enumerate(rows)
    ]
    path.write_text(
        "\n".join(
            [
                ",".join(columns),
                *(",".join(repr(row[column]) for column in columns) for row in named),
            ]
        )
    )
    read = Scanpath.read(path)
    expected = sorted(((x, y, start + d / 2, d) for x, y, start, d in rows), key=lambda row: row[2])
    assert np.allclose(
        np.sort(read.fixations[:, 2]), [row[2] for row in expected], atol=1e-9, rtol=0
    )
    assert sorted(read.fixations[:, :2].tolist()) == sorted([list(row[:2]) for row in expected])
    assert (np.diff(read.fixations[:, 2]) >= 0).all()
    assert np.allclose(
        np.sort(read.fixations[:, 3]), sorted(row[3] for row in expected), atol=1e-9, rtol=0
    )


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="0123456789.,-\n\"'e+ainftx;_ \r\0", max_size=60))
def test_any_text_below_the_header_is_read_or_refused_but_never_crashes(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("csv") / "f.csv"
    path.write_text("start_time,end_time,center_x,center_y\n" + text, newline="")
    try:
        assert np.isfinite(Scanpath.read(path).fixations).all()
    except SignalError as error:
        assert str(path) in str(error)
