"""Files that may be opened as a video: decided by their content, with errors that say why."""

import av
import numpy as np
import pytest

from modulate.data.video_containers import MAX_PIXELS, open_container, reason
from modulate.errors import VideoError

PLAYLIST = "ffconcat version 1.0\nfile some.mkv\n"


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "some.mkv"
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "a title of it"
        stream = out.add_stream("mpeg4", rate=5)
        stream.width = 32
        stream.height = 16
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.zeros((16, 32, 3), np.uint8), format="rgb24")
                )
            )
        out.mux(stream.encode())
    return path


def test_pictures_may_have_a_little_more_than_8k():
    assert 7680 * 4320 <= MAX_PIXELS < 1.1 * 7680 * 4320


def test_a_video_is_opened_even_if_its_metadata_is_not_text(video):
    for _ in range(2):
        with open_container(video) as container:
            assert container.streams.video[0].width == 32
        data = video.read_bytes()
        video.write_bytes(data.replace(b"a title of it", b"\xff\xfe\xfd\xfc\xfb title of"))


@pytest.mark.parametrize("level", [None, av.logging.WARNING])
def test_a_file_that_refers_to_others_is_refused_by_format_every_time_and_the_log_settings_stay(
    video, level
):
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    path = video.with_name("list.mkv")
    path.write_text(PLAYLIST)
    av.logging.set_level(level)
    try:
        for _ in range(3):
            with pytest.raises(
                VideoError, match=r"FFmpeg takes it for 'concat', which is not one of the accepted"
            ):
                open_container(path)
            assert (av.logging.get_level(), av.logging.get_skip_repeated()) == (level, before[1])
    finally:
        av.logging.set_level(before[0])


def test_a_file_that_is_not_a_video_is_refused_with_the_reason_and_no_format(tmp_path):
    path = tmp_path / "notes.mkv"
    path.write_text("These are notes.\n" * 100)
    for name, why in ((path, "Invalid data found"), (tmp_path / "nowhere.mkv", "No such file")):
        with pytest.raises(
            VideoError,
            match=(
                rf"{name.name} cannot be opened as a video: {why}.*\. It is not a video, or was"
                r" cut off"
            ),
        ) as caught:
            open_container(name)
        assert "FFmpeg takes it for" not in str(caught.value)


def test_a_reason_is_ffmpeg_s_text_the_error_s_text_or_its_class():
    assert reason(av.InvalidDataError(1, "bad data")) == "bad data"
    assert reason(OSError("no more")) == "no more"
    assert reason(OSError()) == "OSError"
    assert (
        reason(av.ArgumentError(22, "Invalid argument"))
        == f"Invalid argument: pictures may have at most {MAX_PIXELS:,} pixels"
    )
