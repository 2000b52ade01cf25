"""Reading gaze files of data sets: valid samples, joining by frame, messages for bad input."""

import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modulate.errors import MissingFileError, SignalError
from modulate_gaze import raw_gaze
from modulate_gaze.raw_gaze import read_gaze

HEAD = (
    "## [BeGaze]\n## Sample Rate:\t30\n## Größe:\t1280\n\nTime\tType\tTrial\tL POR X [px]\tL POR Y"
    " [px]\tFrame\tL Event Info\n"
)
EGO4D = (
    "component_idx,component_timestamp_s,canonical_timestamp_s,confidence,"
    "norm_pos_x,norm_pos_y,base_data\n"
)
HOLO = "frame_idx,timestamp_sec,u,v,valid,in_frame\n"


def short(frame, x, y, event="Fixation"):
    return f"123456\tSMP\t1\t{x}\t{y}\t{frame}\t{event}\n"


def long(code, x, y):
    cells = ["123456", "SMP", "1", "0", "0", str(x), str(y), *["0"] * 17, code, "Fixation"]
    assert len(cells) == 26
    return "\t".join(cells) + "\n"


@pytest.fixture
def read(tmp_path):
    def read(source, data, untracked="keep", size=None):
        path = tmp_path / f"clip{raw_gaze.SUFFIXES[source]}"
        if isinstance(data, np.ndarray):
            np.save(path, data)
        else:
            path.write_bytes(data if isinstance(data, bytes) else data.encode("latin-1"))
        return read_gaze(path, source, untracked, size)

    return read


def error_of(read, source, data, text, **more):
    with pytest.raises(SignalError, match=text):
        read(source, data, **more)


# --- EGTEA


def test_begaze_exports_are_brought_to_frames_of_24_fps(read):
    found = read("egtea", HEAD + short(0, 640, 480) + short(2, 320, 240))
    assert found.fps == 24 and found.xy.tolist() == [[0.5, 0.5], [0, 0], [0.25, 0.25]]
    assert found.present.all() and (found.untracked, found.outside) == (1, 0)


def test_time_codes_count_frames(read):
    found = read("egtea", HEAD + long("00:00:00:01", 640, 240) + long("00:01:02:03", 128, 96))
    assert len(found) == 62 * 24 + 3 + 1
    assert found.xy[1].tolist() == [0.5, 0.25] and found.xy[-1].tolist() == [0.1, 0.1]


def test_of_several_samples_in_a_frame_each_counts_half_against_all_before(read):
    found = read("egtea", HEAD + short(0, 128, 96) + short(0, 384, 288) + short(0, 640, 480))
    assert found.xy.tolist() == [
        [
            pytest.approx(((128 + 384) / 2 + 640) / 2 / 1280),
            pytest.approx(((96 + 288) / 2 + 480) / 2 / 960),
        ]
    ]


def test_gaze_beyond_the_frame_is_clamped_to_its_last_pixel_and_counted(read):
    found = read("egtea", HEAD + short(0, 1400, -20) + short(1, 1280, 959))
    assert found.xy.tolist() == [[1279 / 1280, 0], [1279 / 1280, 959 / 960]] and found.outside == 2


def test_untracked_samples_are_kept_at_the_corner_or_dropped(read):
    text = (
        HEAD
        + short(0, 0, 0, "Blink")
        + short(1, 640, 480)
        + short(1, 0, 0, "Blink")
        + short(3, 64, 48)
    )
    text += short(4, 0, 0, "Blink") + short(4, 128, 96)  # seen after all
    kept = read("egtea", text)
    dropped = read("egtea", text, "drop")
    assert kept.present.all() and kept.xy.tolist() == [
        [0, 0],
        [0.25, 0.25],
        [0, 0],
        [0.05, 0.05],
        [0.05, 0.05],
    ]
    assert dropped.present.tolist() == [False, True, False, True, True] and dropped.xy[
        [1, 4]
    ].tolist() == [[0.5, 0.5], [0.1, 0.1]]
    assert kept.untracked == dropped.untracked == 2


def test_samples_before_the_video_are_left_out(read):
    assert read("egtea", HEAD + short(-5, 1, 1) + short(0, 640, 480)).xy.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "1 SMP 1 2 3\n",
            r"clip\.txt, line 6: 5 fields, where BeGaze's exports .* have 7 or 26: '1 SMP 1 2 3'",
        ),
        (short(0, "left", 2), r"line 6: x 'left' is no number"),
        (short(0, 1, "1_0"), r"line 6: y '1_0' is no number"),
        (short(0, "nan", 2), r"line 6: x 'nan' is no number"),
        (short("", 1, 2).replace("\t\t", "\t?\t"), r"line 6: frame '\?' is no number"),
        (
            short(10**12, 1, 2),
            r"line 6: frame 1e\+12 is in no video; the last allowed is 2073599, 24 hours",
        ),
        (long("00:00:61:00", 1, 2), r"line 6: '00:00:61:00' is no time HH:MM:SS:FF at 24 frames"),
        (long("00:00:01:24", 1, 2), r"line 6: '00:00:01:24' is no time HH:MM:SS:FF at 24 frames"),
        (long("00:00:01", 1, 2), r"line 6: '00:00:01' is no time HH:MM:SS:FF"),
    ],
)
def test_bad_begaze_lines_are_named(read, line, text):
    error_of(read, "egtea", HEAD + line, text)


def test_a_file_without_samples_is_refused(read):
    error_of(read, "egtea", HEAD, r"clip\.txt holds no gaze sample")


# --- EgoExoLearn


def test_arrays_have_a_row_for_each_frame_at_30_fps(read):
    rows = np.array(
        [[0.1, 0.2, 1], [0.3, 0.4, 0], [np.nan, 0.5, 1], [1.2, 0.5, 1]], dtype=np.float32
    )
    kept = read("egoexolearn", rows)
    dropped = read("egoexolearn", rows, "drop")
    assert kept.fps == 30 and np.allclose(kept.xy, [[0.1, 0.2], [0.3, 0.4], [0, 0], [1, 0.5]])
    assert kept.present.all() and dropped.present.tolist() == [True, False, False, True]
    assert (kept.untracked, kept.outside) == (2, 1)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            np.zeros((4, 2)),
            r"clip\.npy holds float64 of shape \(4, 2\); .* \(frames, 3\): x, y, valid",
        ),
        (np.zeros((0, 3)), r"holds 0 frames"),
        (np.array([["a", "b", "c"]]), r"holds <U1 of shape \(1, 3\)"),
        (
            np.array([[0.1, 0.2, 1], [640, 480, 1]]),
            r"clip\.npy, frame 1: \(640, 480\) looks like pixels",
        ),
        (b"", r"clip\.npy cannot be read as a NumPy array"),
        (b"\x93NUMPY\x01\x00\x10\x00 not a header  ", r"cannot be read as a NumPy array"),
        (b"\x80\x04K\x01.", r"cannot be read as a NumPy array of numbers: .* pickles never"),
    ],
)
def test_other_arrays_are_refused(read, data, text):
    error_of(read, "egoexolearn", data, text)


def test_arrays_of_objects_are_never_unpickled(read, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    path = tmp_path / "clip.npy"
    np.save(path, np.array([[Trap()] * 3]), allow_pickle=True)
    with pytest.raises(SignalError, match="pickles never"):
        read_gaze(path, "egoexolearn")
    assert not (tmp_path / "sprung").exists()


def test_archives_and_headers_that_promise_more_than_the_file_holds_are_refused(tmp_path):
    path = tmp_path / "clip.npy"
    with path.open("wb") as file:
        np.savez(file, np.zeros((2, 3)))
    with pytest.raises(
        SignalError, match=r"cannot be read as a NumPy array of numbers: .* pickles never"
    ):
        read_gaze(path, "egoexolearn")
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (10**13, 3)}
        )
    with pytest.raises(SignalError, match="cannot be read as a NumPy array"):
        read_gaze(path, "egoexolearn")


# --- Ego4D and HoloAssist


def test_ego4d_has_its_origin_at_the_bottom(read):
    found = read(
        "ego4d",
        EGO4D
        + "0,0.0,0.0,1.0,0.25,0.9,\n0,0.01,0.01,1.0,0.75,0.7,\n"
        + "0,0.1,0.1,0.2,0.5,0.5,\n0,0.2,0.2,1.0,,,\n",
    )
    assert found.fps == 30 and len(found) == 7
    assert (
        np.allclose(found.xy[[0, 3]], [[0.5, 0.2], [0.5, 0.5]])
        and not found.xy[[1, 2, 4, 5, 6]].any()
    )
    assert found.untracked == 5


def test_where_untracked_samples_are_dropped_so_are_those_of_low_confidence(read):
    text = EGO4D + "0,0,0.0,0.6,0.5,0.5,\n0,0,0.04,0.61,0.25,0.5,\n"
    assert read("ego4d", text, "drop").present.tolist() == [False, True]
    assert read("ego4d", text).xy.tolist() == [[0.5, 0.5], [0.25, 0.5]]


def test_holoassist_is_read_as_the_benchmark_projects_it(read):
    text = (
        HOLO
        + "0,0.0,224,126,True,True\n1,0.04,,,False,False\n"
        + "2,0.08,448,252,False,True\n3,0.12,2000,126,True,False\n"
    )
    kept = read("holoassist", text, size=(896, 504))
    dropped = read("holoassist", text, "drop", size=(896, 504))
    assert kept.xy.tolist() == [[0.25, 0.25], [0.5, 0.5], [0.5, 0.5], [1, 0.25]]
    assert dropped.present.tolist() == [True, False, False, True] and (
        kept.untracked,
        kept.outside,
        kept.fps,
    ) == (2, 1, 24.46)
    error_of(read, "holoassist", text, r"positions are pixels of the video; its size must be known")


@pytest.mark.parametrize(
    ("source", "data", "text"),
    [
        (
            "ego4d",
            "a,b\n1,2\n",
            (
                r"clip\.csv, line 1: the header 'a,b' lacks canonical_timestamp_s, confidence,"
                r" norm_pos_x, norm_pos_y"
            ),
        ),
        (
            "ego4d",
            EGO4D + "0,0,0,1,0.5\n",
            r"clip\.csv, line 2: 5 values where the header names 7 columns",
        ),
        (
            "ego4d",
            EGO4D + "\n0,0,,1,0.5,0.5,\n",
            r"clip\.csv, line 3: the sample has no canonical_timestamp_s",
        ),
        ("ego4d", EGO4D + "0,0,1e9,1,0.5,0.5,\n", r"line 2: frame 3e\+10 is in no video"),
        ("ego4d", EGO4D + "0,0,0,1,inf,0.5,\n", r"line 2: norm_pos_x 'inf' is no number"),
        ("ego4d", "", r"line 1: the header '' lacks"),
        (
            "holoassist",
            HOLO + "x,0,1,1,True,True\n",
            r"clip_gaze_2d\.csv, line 2: frame_idx 'x' is no number",
        ),
    ],
)
def test_bad_tables_are_named_with_their_line(read, source, data, text):
    error_of(read, source, data, text, size=(896, 504))


def test_files_must_exist_be_of_a_known_source_and_not_too_large(tmp_path, monkeypatch):
    with pytest.raises(
        MissingFileError,
        match=r"no gaze file .*x\.txt\. A recording of egtea is called <video stem>\.txt",
    ):
        read_gaze(tmp_path / "x.txt", "egtea")
    with pytest.raises(
        SignalError, match=r"Unknown source of gaze 'egtea2'\. Did you mean 'egtea'"
    ):
        read_gaze(tmp_path / "x.txt", "egtea2")
    (tmp_path / "x.txt").write_text(HEAD + short(0, 1, 1))
    monkeypatch.setattr(raw_gaze, "MAX_BYTES", 10)
    with pytest.raises(SignalError, match="more than 10; no gaze recording"):
        read_gaze(tmp_path / "x.txt", "egtea")


def test_a_byte_order_mark_does_not_matter(read):
    assert len(read("ego4d", b"\xef\xbb\xbf" + EGO4D.encode() + b"0,0,0,1,0.5,0.5,\n")) == 1


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(raw_gaze.SOURCES),
    st.binary(max_size=200) | st.text("0123456789.,:-\t\n#TimeSMPx", max_size=200).map(str.encode),
    st.booleans(),
)
def test_any_bytes_are_a_recording_or_a_signal_error(tmp_path, source, data, headed):
    path = tmp_path / f"clip{raw_gaze.SUFFIXES[source]}"
    head = {
        "egtea": HEAD.encode("latin-1"),
        "ego4d": EGO4D.encode(),
        "holoassist": HOLO.encode(),
        "egoexolearn": b"\x93NUMPY\x01\x00",
    }[source]
    path.write_bytes((head if headed else b"") + data)
    with contextlib.suppress(SignalError):
        found = read_gaze(path, source, size=(100, 100))
        assert np.isfinite(found.xy).all() and found.xy.min() >= 0 and found.xy.max() <= 1


def test_times_far_before_the_video_are_no_crash(tmp_path):
    path = tmp_path / "clip.csv"
    path.write_text(
        "canonical_timestamp_s,confidence,norm_pos_x,norm_pos_y\n-1e308,1,0.5,0.5\n0,1,0.5,0.5\n"
    )
    assert len(read_gaze(path, "ego4d")) == 1


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': Fal",
        "{'descr': '<f8', (",
        "[" * 90,
        "{'descr': ('<f8', (9,)*9)}",
        "\x00",
    ],
)
def test_headers_of_arrays_that_are_no_literals_are_refused(header, tmp_path):
    path = tmp_path / "clip.npy"
    path.write_bytes(
        b"\x93NUMPY\x01\x00"
        + (len(header) + 1).to_bytes(2, "little")
        + header.encode()
        + b"\n"
        + bytes(240)
    )
    with pytest.raises(SignalError, match=r"clip\.npy"):
        read_gaze(path, "egoexolearn")
