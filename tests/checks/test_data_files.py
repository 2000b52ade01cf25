"""Videos, pictures and signals of samples."""

import av
import pytest
from PIL import Image

from modulate.checks.data_check import check_data
from tests.checks.tables import GAZE, HEAD, ROWS, STEPS, check_table, found, table_in


def test_videos_that_cannot_be_read(clips):
    (clips / "b.mp4").write_bytes(b"no video")
    inspection = check_table(clips, HEAD + ROWS)
    ((text, rows),) = found(inspection, "error").items()
    assert text == "1 of 6 videos or pictures cannot be read."
    assert rows[0].startswith(f"q.tsv, line 3: {clips}/b.mp4 cannot be opened as a video")


def test_videos_that_are_cut_off_are_found_by_decoding(clips):
    # With its index in front, a file that is cut off still declares its whole length.
    with av.open(str(clips / "a.mp4")) as source:
        options = {"movflags": "faststart"}
        with av.open(str(clips / "b.mp4"), "w", options=options) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    with av.open(str(clips / "b.mp4")) as written:
        positions = [packet.pos for packet in written.demux(video=0)]
    (clips / "b.mp4").write_bytes((clips / "b.mp4").read_bytes()[: positions[8]])
    assert check_table(clips, HEAD + ROWS).ok
    inspection = check_table(clips, HEAD + ROWS, decode=True)
    ((text, rows),) = found(inspection, "error").items()
    assert text == "1 of 6 videos or pictures cannot be read." and "decoding stops" in rows[0]


def test_windows_outside_of_the_video(clips):
    inspection = check_table(clips, HEAD + ROWS.replace("b.csv,1.5", "b.csv,7.5"))
    assert found(inspection, "error") == {
        "1 of 6 windows lie outside of their video.": (
            "q.tsv, line 3: 0 to 7.5 s of b.mp4, which ends at 2.10 s",
        )
    }


def test_pictures_are_read(clips):
    Image.new("RGB", (8, 8)).save(clips / "red.png")
    (clips / "bad.png").write_bytes(b"no picture")
    text = "image,question,answer\nred.png,?,x\nbad.png,?,x\n"
    inspection = check_table(clips, text, (), split={"shares": {"train": 0.5, "test": 0.5}})
    ((text, rows),) = found(inspection, "error").items()
    assert text == "1 of 2 videos or pictures cannot be read."
    assert rows[0].startswith("q.tsv, line 3: ") and "is no picture" in rows[0]


def test_signals_that_are_empty_elsewhere_or_not_in_the_window(clips):
    head, event = GAZE.splitlines()
    (clips / "a.csv").write_text(f"{head}\n")
    (clips / "b.csv").write_text(f"{head}\n100,101,0.4,0.5\n")
    (clips / "c.csv").write_text(f"{head}\n1.6,1.9,0.4,0.5\n")
    warnings = found(check_table(clips, HEAD + ROWS), "warning")
    assert event and {text: rows[0] for text, rows in warnings.items()} == {
        "1 of 6 'gaze' files hold no event.": f"q.tsv, line 2: {clips}/a.csv",
        (
            "1 of 6 'gaze' files lie outside of their video, before its first frame or after its"
            " end: are they on another clock? Times must be seconds from the video's first frame."
        ): "q.tsv, line 3: b.csv, from 100.00 to 101.00 s; b.mp4 ends at 2.10 s",
        "1 of 6 clips have no 'gaze' event in their window.": "q.tsv, line 4: 0 to 1.5 s",
    }


@pytest.mark.parametrize(("kinds", "level"), [(("hand",), "error"), ((), None)])
def test_a_kind_that_the_recipe_reads_must_be_there(clips, kinds, level):
    inspection = check_table(clips, HEAD + ROWS, kinds)
    text = "6 of 6 samples have no 'hand' signal."
    assert (text in found(inspection, "error")) == (level == "error")


def test_a_signal_that_vanished_is_missing(clips):
    check_table(clips, HEAD + ROWS)
    data = table_in(clips)
    data.prepare()
    (clips / "a.csv").unlink()
    (clips / "f.mp4").unlink()
    errors = found(check_data(data, STEPS), "error")
    assert errors == {
        "1 of 6 videos or pictures are missing.": (f"q.tsv, line 7: {clips}/f.mp4",),
        "1 of 6 'gaze' files are missing.": (f"q.tsv, line 2: {clips}/a.csv",),
    }
