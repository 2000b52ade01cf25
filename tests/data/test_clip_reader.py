"""Reading of clips: the frames of each read, whatever else is expected; notes of shown times."""

import json

import av
import numpy as np
import pytest

from modulate.data import clip_reader as clips
from modulate.data.clip_reader import ClipReader, ShownTimes
from modulate.data.video import read_frames
from modulate.errors import MissingFileError, VideoError


def film(path, fps, count=12):
    """Write ``count`` frames of 32 × 48."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=fps)
        stream.width = 48
        stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(count):
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(rng.integers(0, 255, (32, 48, 3), np.uint8))
                )
            )
        out.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Return a video of twelve frames, one a second."""
    return film(tmp_path_factory.mktemp("video") / "v.mp4", fps=1)


FRAME = 32 * 48 * 3


def same(found, wanted):
    return found.times == wanted.times and np.array_equal(found.images, wanted.images)


@pytest.fixture
def decoded(monkeypatch):
    """Return a list that collects (function, times) of every call that decodes."""
    calls = []

    def histories_on(name):
        original = getattr(clips, name)
        monkeypatch.setattr(
            clips,
            name,
            lambda path, times: (calls.append((name, list(times))), original(path, times))[1],
        )

    histories_on("read_frames_at")
    histories_on("read_frames")
    return calls


def test_the_expected_frames_of_a_video_are_decoded_together_and_each_clip_gets_its_own(
    video, decoded
):
    reader = ClipReader()
    reader.expect(video, [1.0, 3.0])
    reader.expect(video, [3.0, 5.5])
    for times in ([1.0, 3.0], [3.0, 5.5], [5.5], [5.5, 1.0, 1.2]):
        assert same(reader.read(video, times), read_frames(video, times))
    assert decoded == [
        ("read_frames_at", [1.0, 3.0, 5.5]),
        ("read_frames_at", [1.0, 1.2, 3.0, 5.5]),
    ]


@pytest.mark.parametrize(
    ("most", "how"), [(2 * FRAME, "read_frames_at"), (2 * FRAME - 1, "read_frames")]
)
def test_a_video_s_frames_stay_in_memory_if_they_fit(video, decoded, most, how):
    reader = ClipReader(video_bytes=most)
    reader.expect(video, [2.0, 4.0])
    assert [same(reader.read(video, [2.0]), read_frames(video, [2.0])) for _ in range(2)] == [
        True,
        True,
    ]
    assert [name for name, _ in decoded] == [how] * (1 if how == "read_frames_at" else 2)


def test_by_default_a_video_takes_an_eighth_of_the_memory(video, decoded):
    ClipReader(memory_bytes=8 * FRAME).read(video, [1.0])
    ClipReader(memory_bytes=8 * FRAME - 8).read(video, [1.0])
    assert [name for name, _ in decoded] == ["read_frames_at", "read_frames"]


def test_another_clip_beyond_the_end_does_not_make_this_one_fail(video):
    reader = ClipReader()
    reader.expect(video, [100.0])
    assert same(reader.read(video, [3.0]), read_frames(video, [3.0]))
    with pytest.raises(VideoError, match="the video ends at"):
        reader.read(video, [100.0])


def test_the_store_is_asked_first_and_decodes_what_it_lacks(video, decoded, tmp_path):
    asked = []

    def store(path, times, decode):
        asked.append((path, list(times)))
        return decode()

    reader = ClipReader(store=store)
    assert (
        same(reader.read(video, [1.0]), read_frames(video, [1.0]))
        and asked == [(video, [1.0])]
        and len(decoded) == 1
    )
    with pytest.raises(MissingFileError):  # which is the reader's to say
        reader.read(tmp_path / "none.mp4", [1.0])
    assert len(asked) == 1


def test_notes_are_found_again_by_content_and_times(video, tmp_path):
    notes = ShownTimes(tmp_path)
    assert notes.find(video, [1.2]) is None
    notes.note(video, [1.2], [1.0])
    notes.note(video, [1.2, 3.5], [1.0, 3.0])
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(video.read_bytes())
    again = ShownTimes(tmp_path)
    assert (again.find(copy, [1.2]), again.find(copy, [1.2, 3.5]), again.find(copy, [3.5])) == (
        (1.0,),
        (1.0, 3.0),
        None,
    )
    with pytest.raises(MissingFileError):
        notes.find(tmp_path / "none.mp4", [1.2])


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"[1.2]": 3}',
        '{"[1.2]": ["x"]}',
        '{"[1.2]": [1.0, 2]}',
        '{"[1.2]": [1.0], "[2.0]": null}',
    ],
)
def test_damaged_notes_cause_a_warning_and_are_ignored(video, tmp_path, text):
    notes = ShownTimes(tmp_path)
    notes.note(video, [1.2], [1.0])
    [path] = tmp_path.glob("*.json")
    assert json.loads(path.read_text()) == {"[1.2]": [1.0]}
    path.write_text(text)
    with pytest.warns(
        UserWarning, match=r"The notes in .* are damaged .*; these clips are decoded again"
    ):
        assert notes.find(video, [1.2]) is None
