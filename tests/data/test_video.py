import math
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modulate.data import video
from modulate.data.video import VideoInfo, probe, read_frames
from modulate.data.video_containers import CONTAINERS
from modulate.errors import MissingFileError, VideoError
from modulate.interfaces.visual_grid import sample_times
from tests.paths import ROOT

CLOCK = 90_000
REGULAR = [index / 25 for index in range(150)]
UNEVEN = [round(t, 3) for t in np.cumsum([0.0] + [0.04, 0.2, 0.013, 0.5, 0.04, 0.1, 0.333] * 8)]


def picture(index: int, height: int = 32, width: int = 64) -> np.ndarray:
    """Eight vertical stripes hold the bits of ``index``, so that lossy coding cannot change it."""
    bits = np.array([(index >> bit) & 1 for bit in range(8)], np.uint8) * 255
    return np.broadcast_to(np.repeat(bits, width // 8)[None, :, None], (height, width, 3)).copy()


def indices(images: np.ndarray) -> list[int]:
    stripes = images[:, images.shape[1] // 2, 4::8, 1] > 127
    return [int(sum(1 << bit for bit in range(8) if row[bit])) for row in stripes]


def write(
    path: Path, times: Sequence[float], start: float = 0.0, faststart: bool = False, **options: str
) -> Path:
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as out:
        stream = out.add_stream("libx264", rate=25, options=options)
        stream.width = 64
        stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, CLOCK)
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index % 256), format="rgb24")
            frame.pts = round((time + start) * CLOCK)
            frame.time_base = Fraction(1, CLOCK)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16_000, layout="mono")
        for index in range(8):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate = 16_000
            frame.pts = index * 1024
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of all frames decoded from now on."""
    times: list[float] = []
    original = video._Reader._decoded

    def noted(self):
        for frame in original(self):
            times.append(self.time(frame))
            yield frame

    monkeypatch.setattr(video._Reader, "_decoded", noted)
    return times


@pytest.fixture(scope="module")
def regular(folder: Path) -> Path:
    return write(
        folder / "regular.mp4", REGULAR, bf="3", g="25", **{"x264-params": "b-adapt=0:scenecut=0"}
    )


@pytest.fixture(scope="module")
def uneven(folder: Path) -> Path:
    return write(
        folder / "uneven.mp4", UNEVEN, bf="2", g="12", **{"x264-params": "b-adapt=0:scenecut=0"}
    )


def expected(times: Sequence[float], asked: float) -> int:
    return max((index for index, time in enumerate(times) if time <= asked + 1e-5), default=0)


def test_the_regular_file_really_has_b_frames_and_several_key_frames(regular: Path) -> None:
    with av.open(str(regular)) as file:
        packets = [p for p in file.demux(video=0) if p.pts is not None]
    assert any(packet.pts != packet.dts for packet in packets) and any(
        a.pts > b.pts for a, b in pairwise(packets)
    )
    assert sum(packet.is_keyframe for packet in packets) >= 5


@pytest.mark.parametrize(("name", "times"), [("regular", REGULAR), ("uneven", UNEVEN)])
def test_every_frame_is_found_at_its_own_time_and_until_the_next(
    name: str, times: list[float], request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    exact = read_frames(path, times)
    assert indices(exact.images) == list(range(len(times)))
    assert exact.times == pytest.approx(times, abs=2e-5)
    assert exact.images.dtype == np.uint8 and exact.images.shape == (len(times), 32, 64, 3)
    late = [b - 1e-3 for _, b in pairwise(times)]
    assert indices(read_frames(path, late).images) == list(range(len(times) - 1))


@pytest.mark.parametrize(("name", "times"), [("regular", REGULAR), ("uneven", UNEVEN)])
def test_a_single_time_reached_by_seeking_gives_the_frame_shown_then(
    name: str, times: list[float], request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    for asked in np.linspace(0, times[-1], 37):
        frames = read_frames(path, [asked])
        assert indices(frames.images) == [expected(times, asked)], asked
        assert frames.times[0] == pytest.approx(times[expected(times, asked)], abs=2e-5)


def test_frames_of_an_uneven_file_are_not_chosen_by_index(uneven: Path) -> None:
    fps = probe(uneven).fps
    asked = UNEVEN[38]
    assert indices(read_frames(uneven, [asked]).images) == [38]
    assert int(asked * fps) != 38


def test_times_of_one_frame_return_it_once_and_any_order_is_accepted(regular: Path) -> None:
    frames = read_frames(regular, [2.01, 1.0, 2.0, 1.039, 2.03])
    assert indices(frames.images) == [25, 50]
    assert frames.times == pytest.approx((1.0, 2.0))


def test_a_time_before_the_first_frame_gives_the_first(regular: Path) -> None:
    assert indices(read_frames(regular, [-3.0]).images) == [0]


def test_time_counts_from_the_stream_s_own_start(folder: Path) -> None:
    path = write(folder / "late.mkv", REGULAR[:60], start=7.0, bf="2", g="10")
    with av.open(str(path)) as file:
        assert file.streams.video[0].start_time * file.streams.video[0].time_base > 6.9
    asked = [0.0, 0.48, 1.2, 2.0]
    frames = read_frames(path, asked)
    assert indices(frames.images) == [0, 12, 30, 50]
    assert frames.times == pytest.approx(asked, abs=1e-3)
    assert probe(path).duration == pytest.approx(2.4, abs=0.005)
    with pytest.raises(
        VideoError, match=r"a frame at 3\.000 s was requested, but the video ends at 2\.400 s"
    ):
        read_frames(path, [3.0])


@pytest.mark.parametrize(("ending", "b_frames"), [("ts", 2), ("mkv", 2), ("mov", 2), ("flv", 2)])
def test_every_container_is_read_and_seeks_by_time(
    folder: Path, ending: str, b_frames: int
) -> None:
    path = write(
        folder / f"container.{ending}",
        REGULAR,
        bf=str(b_frames),
        g="10",
        **{"x264-params": "b-adapt=0:scenecut=0"},
    )
    for index in (0, 7, 33, 80, 149):
        assert indices(read_frames(path, [REGULAR[index]]).images) == [index]
    assert indices(read_frames(path, [-1.0, 0.0, 3.2, 5.96]).images) == [0, 80, 149]
    assert probe(path).duration == pytest.approx(6.0, abs=0.05)


def test_a_clock_of_milliseconds_does_not_lose_a_frame_requested_at_its_exact_time(
    folder: Path,
) -> None:
    times = [index / 30 for index in range(31)]
    path = write(folder / "coarse.mkv", times, bf="0")
    assert indices(read_frames(path, times).images) == list(range(31))


def test_pictures_before_an_open_group_s_key_frame_are_decoded_whole(folder: Path) -> None:
    options = {"bf": "3", "g": "20", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
    path = write(folder / "open.mp4", REGULAR, **options)
    for index in range(15, 85):
        assert indices(read_frames(path, [REGULAR[index]]).images) == [index]


def test_far_times_are_reached_by_seeking_and_near_ones_by_decoding_on(
    folder: Path, decoded: list[float]
) -> None:
    path = write(folder / "long.mp4", [index / 2 for index in range(400)], g="10", bf="0")
    assert indices(read_frames(path, [1.0, 190.0]).images) == [2, 380 % 256]
    assert len(decoded) < 40
    decoded.clear()
    assert read_frames(path, [150.0, 152.0, 154.0]).times == (150.0, 152.0, 154.0)
    assert len(decoded) == len(set(decoded))


def test_one_key_frame_in_a_long_file_does_not_decode_it_again_for_every_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        folder / "one_key.mp4",
        [index / 2 for index in range(400)],
        g="1000",
        bf="0",
        **{"x264-params": "scenecut=0"},
    )
    seeks: list[float] = []
    original = video._Reader._seek
    monkeypatch.setattr(
        video._Reader, "_seek", lambda self, time: (seeks.append(time), original(self, time))[1]
    )
    asked = [11.0 * index for index in range(18)]
    assert indices(read_frames(path, asked).images) == [22 * index % 256 for index in range(18)]
    assert len(seeks) <= 6


def test_probe_returns_duration_rate_size_and_count(regular: Path) -> None:
    info = probe(regular)
    assert info == VideoInfo(pytest.approx(6.0, abs=0.05), pytest.approx(25, abs=0.3), 64, 32, 150)


def test_rotation_metadata_turns_frames_upright(folder: Path, regular: Path) -> None:
    data = bytearray(regular.read_bytes())
    big_endian = lambda *values: b"".join(v.to_bytes(4, "big", signed=True) for v in values)
    at = data.index(big_endian(65536, 0, 0, 0, 65536, 0, 0, 0, 0x40000000), data.index(b"tkhd"))
    data[at : at + 36] = big_endian(
        0, 65536, 0, -65536, 0, 0, 0, 0, 0x40000000
    )  # shown a quarter turn clockwise
    path = folder / "turned.mp4"
    path.write_bytes(data)
    plain = read_frames(regular, [0.2]).images
    turned = read_frames(path, [0.2]).images
    assert turned.shape == (1, 64, 32, 3)
    assert np.array_equal(turned[0], np.rot90(plain[0], -1))
    assert (probe(path).width, probe(path).height) == (32, 64)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for call in (probe, lambda p: read_frames(p, [0.0])):
        with pytest.raises(MissingFileError, match=r"There is no video file at .*gone\.mp4"):
            call(tmp_path / "gone.mp4")


def test_an_empty_file_is_named_as_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match=r"empty\.mp4 is empty \(0 bytes\)"):
        read_frames(tmp_path / "empty.mp4", [0.0])


@pytest.mark.parametrize("name", ["notes.mp4", "notes.txt"])
def test_text_is_not_a_video_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("These are notes, not pictures.\n" * 200)
    with pytest.raises(
        VideoError,
        match=(
            rf"{name} cannot be opened as a video: .*It is not a video, or was cut off before its"
            r" index"
        ),
    ):
        read_frames(tmp_path / name, [0.0])


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile regular.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:6,\nregular.mp4\n#EXT-X-ENDLIST\n",
    "sdp": (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5555 RTP/AVP"
        " 96\na=rtpmap:96 H264/90000\n"
    ),
    "dash": (
        '<?xml version="1.0"?><MPD'
        ' xmlns="urn:mpeg:dash:schema:mpd:2011">'
        "<Period><BaseURL>regular.mp4</BaseURL></Period></MPD>"
    ),
    "rtsp": "[Reference]\nRef1=http://127.0.0.1:9/regular.mp4\n",
}


@pytest.mark.parametrize("ending", ["mp4", "m3u8", "mkv", "ffconcat", "txt", ""])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_file_that_refers_to_others_is_not_a_video_whatever_its_name(
    kind: str, ending: str, regular: Path
) -> None:
    path = regular.parent / f"{kind}.{ending}"  # beside a video that it names
    path.write_text(PLAYLISTS[kind])
    for call in (probe, lambda path: read_frames(path, [0.0])):
        with pytest.raises(
            VideoError,
            match=(
                rf"{path.name} cannot be opened as a video: .*It is not a video, or was cut off"
                r" before its index"
            ),
        ):
            call(path)


@pytest.mark.parametrize(("kind", "ending"), [("concat", "mp4"), ("hls", "m3u8"), ("sdp", "mp4")])
def test_a_refused_format_is_named_with_the_accepted_ones_and_the_log_settings_stay(
    kind: str, ending: str, regular: Path
) -> None:
    path = regular.parent / f"named-{kind}.{ending}"
    path.write_text(PLAYLISTS[kind])
    level = av.logging.get_level()
    with pytest.raises(
        VideoError,
        match=(
            rf"FFmpeg takes it for '{kind}', which is not one of the accepted containers \(MP4,"
            r" MOV, .*Matroska and WebM"
        ),
    ):
        probe(path)
    assert av.logging.get_level() == level


def test_a_playlist_inside_a_playlist_or_a_link_to_one_is_refused(regular: Path) -> None:
    for name, inner in (("outer.mp4", "inner.mp4"), ("inner.mp4", "regular.mp4")):
        (regular.parent / name).write_text(f"ffconcat version 1.0\nfile {inner}\n")
    link = regular.parent / "linked.mkv"
    link.symlink_to("outer.mp4")
    with pytest.raises(VideoError, match=r"linked\.mkv .*'concat'"):
        probe(link)


MUXERS = {
    "mov": "mov",
    "mp4": "mov",
    "3gp": "mov",
    "matroska": "matroska",
    "webm": "matroska",
    "avi": "avi",
    "mpegts": "mpegts",
    "mpeg": "mpeg",
    "asf": "asf",
    "flv": "flv",
    "ogg": "ogg",
    "gif": "",
    "h264": "",
    "mjpeg": "",
    "nut": "",
    "mxf": "",
    "yuv4mpegpipe": "",
}
CODECS = {
    "webm": "libvpx",
    "ogg": "libvpx",
    "3gp": "mpeg4",
    "mpeg": "mpeg1video",
    "flv": "flv",
    "asf": "mpeg4",
    "avi": "mpeg4",
    "gif": "gif",
    "mjpeg": "mjpeg",
    "mxf": "mpeg2video",
    "yuv4mpegpipe": "wrapped_avframe",
}
PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p"}


@pytest.mark.parametrize("muxer", MUXERS)
def test_only_the_listed_containers_are_read(muxer: str, tmp_path: Path) -> None:
    codec = CODECS.get(muxer, "libx264")
    codec = "libtheora" if muxer == "ogg" and "libtheora" in av.codecs_available else codec
    path = tmp_path / "some.video"
    with av.open(str(path), "w", format=muxer) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width = 64
        stream.height = 32
        stream.pix_fmt = PIXELS.get(muxer, "yuv420p")
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24").reformat(
                format=stream.pix_fmt
            )
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    if MUXERS[muxer]:
        assert MUXERS[muxer] in CONTAINERS and len(read_frames(path, [0.0, 0.5]).images) == 2
    else:
        with pytest.raises(
            VideoError, match=r"FFmpeg takes it for '\w+', which is not one of the accepted"
        ):
            read_frames(path, [0.0])


def test_every_accepted_container_is_tested_and_documented() -> None:
    assert set(MUXERS.values()) - {""} == CONTAINERS.keys()
    page = (ROOT / "docs/how-to/use-your-own-model.md").read_text(encoding="utf-8")
    assert "; ".join(CONTAINERS.values()) in page


def test_a_file_name_that_looks_like_an_address_is_a_file_name(
    regular: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = regular.read_bytes()
    for name in (
        "concat:regular.mp4",
        "http:a.mp4",
        "subfile,,start,9,end,0,,:x.mp4",
        "pipe:0",
        "-",
        "50%d.mp4",
    ):
        Path(name).write_bytes(data)
        assert probe(name).frames == len(REGULAR), name
    for name in ("clip%03d.png", "*.png"):  # FFmpeg takes such names for sequences of images
        Path(name).write_bytes(data)
        Path("clip001.png").write_bytes(b"no picture")
        with pytest.raises(VideoError, match=r"FFmpeg takes it for 'image2'"):
            probe(name)


def outside(source: Path, path: Path) -> Path:
    """Copy an mp4 without its pictures, for which a data reference (`alis`) names ``source`` beside
    it.
    """
    data = bytearray(source.read_bytes())
    at = data.index(b"mdat")
    size = int.from_bytes(data[at - 4 : at], "big")
    data[at + 4 : at - 4 + size] = bytes(size - 8)
    target = f"/{source.name}".encode()
    target += b"\0" * (len(target) % 2)
    levels = struct.pack(">HH", 1, 1)
    alias = (
        bytes(10)
        + b"\0"
        + bytes(27)
        + bytes(12)
        + b"\0"
        + bytes(63)
        + bytes(16)
        + levels
        + bytes(16)
    )
    alias += struct.pack(">HH", 2, len(target)) + target + struct.pack(">H", 0xFFFF)
    entry = b"alis" + bytes(4) + alias + bytes(max(0, 160 - len(alias)))
    entry = struct.pack(">I", len(entry) + 4) + entry
    at = data.index(b"dref") + 12  # version and flags, number of entries
    old = int.from_bytes(data[at : at + 4], "big")
    data[at : at + old] = entry
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        here = data.index(box)
        data[here - 4 : here] = (
            int.from_bytes(data[here - 4 : here], "big") + len(entry) - old
        ).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def test_pictures_in_another_file_are_not_read(regular: Path) -> None:
    assert regular.read_bytes().index(b"mdat") < regular.read_bytes().index(b"moov")
    path = outside(regular, regular.parent / "outside.mp4")
    with av.open(
        str(path), options={"enable_drefs": "1"}
    ) as file:  # what FFmpeg would do if it were let
        assert sum(1 for _ in file.decode(video=0)) == len(REGULAR)
    with pytest.raises(
        VideoError,
        match=(
            r"outside\.mp4: no frame can be decoded.* its pictures are in another file, which is"
            r" not read"
        ),
    ):
        read_frames(path, [0.0])


def test_a_file_cut_before_its_index_cannot_be_opened(tmp_path: Path, regular: Path) -> None:
    data = regular.read_bytes()
    assert data.index(b"mdat") < data.index(b"moov")
    (tmp_path / "cut.mp4").write_bytes(data[: data.index(b"moov") - 100])
    with pytest.raises(
        VideoError, match=r"cut\.mp4 cannot be opened as a video: .*cut off before its index"
    ):
        probe(tmp_path / "cut.mp4")


def test_a_truncated_file_gives_the_frames_before_the_end_and_says_where_it_stops(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "half.mp4", REGULAR, bf="0", g="25", faststart=True)
    data = path.read_bytes()
    media_start = data.index(b"mdat")
    assert data.index(b"moov") < media_start
    path.write_bytes(data[: media_start + (len(data) - media_start) // 2])
    assert indices(read_frames(path, [0.0, 1.0]).images) == [0, 25]
    whole = 0
    while True:  # up to the cut every frame is right
        try:
            assert indices(read_frames(path, [REGULAR[whole]]).images)[0] in (
                whole,
                whole - 1,
                whole - 2,
            )
        except VideoError:
            break
        whole += 1
    assert 40 < whole < 120
    with pytest.raises(
        VideoError,
        match=(
            r"half\.mp4: the frame at 5\.800 s cannot be read: decoding stops at [234]\.\d+ s of"
            r" the declared 6\.000 s"
        ),
    ):
        read_frames(path, [1.0, 5.8])
    with pytest.raises(
        VideoError, match=r"half\.mp4: .*(decoding stops at|no frame can be decoded)"
    ):
        read_frames(path, [5.8])


def test_sound_alone_is_not_a_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"sound\.mp4 holds no video stream, only: audio"):
        probe(write_sound(tmp_path / "sound.mp4"))


def test_a_time_beyond_the_end_names_both_times_but_one_frame_beyond_is_allowed(
    regular: Path,
) -> None:
    with pytest.raises(
        VideoError,
        match=r"regular\.mp4: a frame at 6\.500 s was requested, but the video ends at 6\.000 s",
    ):
        read_frames(regular, [0.0, 6.5])
    assert indices(read_frames(regular, [6.03]).images) == [149]


@pytest.mark.parametrize("times", [[], [math.nan], [1.0, math.inf]])
def test_times_must_be_finite_and_at_least_one(regular: Path, times: list[float]) -> None:
    with pytest.raises(VideoError, match=r"at least one finite time; got \["):
        read_frames(regular, times)


windows = st.tuples(st.floats(0, 1000), st.floats(0, 200)).map(lambda w: (w[0], w[0] + w[1]))


@given(windows, st.floats(0.1, 30), st.integers(1, 64))
def test_sampled_times_end_at_the_window_s_end_and_stay_inside(
    window: tuple[float, float], fps: float, most: int
) -> None:
    start, end = window
    times = sample_times(window, fps, most)
    assert times[-1] == end and 1 <= len(times) <= most
    assert all(start <= time <= end for time in times)
    full = sample_times(window, fps)
    if len(full) <= most:
        assert times == full
        assert all(
            b - a == pytest.approx(1 / fps, abs=2e-6 / fps + 1e-9) for a, b in pairwise(times)
        )
        assert times[0] - start < 1 / fps
    elif most > 1:
        assert times[0] == start
        assert all(
            b - a == pytest.approx((end - start) / (most - 1), abs=1e-9) for a, b in pairwise(times)
        )


def test_sampled_times_of_a_whole_number_of_steps_include_the_start() -> None:
    assert sample_times((10.0, 13.0), 1.0) == [10.0, 11.0, 12.0, 13.0]
    assert sample_times((0.0, 0.3), 10.0) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert sample_times((10.0, 12.5), 1.0) == [10.5, 11.5, 12.5]
    assert sample_times((0.0, 60.0), 1.0, 4) == [0.0, 20.0, 40.0, 60.0]
    assert sample_times((5.0, 5.0), 1.0, 4) == [5.0]


def test_impossible_windows_and_rates_are_refused_with_their_values() -> None:
    with pytest.raises(VideoError, match=r"start ≤ end; got \(3\.0, 2\.0\)"):
        sample_times((3.0, 2.0), 1.0)
    with pytest.raises(VideoError, match=r"got fps=0, max_frames=4"):
        sample_times((0.0, 2.0), 0, 4)
    with pytest.raises(VideoError, match=r"got fps=1, max_frames=0"):
        sample_times((0.0, 2.0), 1, 0)


def remuxed(source: Path, path: Path, change: Callable[[av.Packet, int], None]) -> Path:
    """Copy the packets of ``source``, each changed by ``change(packet, index)``, without encoding
    anew.
    """
    with (
        av.open(str(source)) as given,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as out,
    ):
        stream = out.add_stream_from_template(given.streams.video[0])
        for index, packet in enumerate(p for p in given.demux(video=0) if p.dts is not None):
            packet.stream = stream
            change(packet, index)
            out.mux(packet)
    return path


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """Half a second without B-frames, each frame a key frame."""
    return write(folder / "plain.mkv", REGULAR[:13], bf="0", g="1")


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_with_negative_presentation_times_are_not_shown_and_the_first_shown_is_at_0(
    ending: str, plain: Path, folder: Path
) -> None:
    def early(packet: av.Packet, index: int) -> None:
        packet.pts, packet.dts = (
            packet.pts - 300,
            packet.dts - 300,
        )  # 0.3 s, in the clock of Matroska: frame k is at k / 25 - 0.3 s

    path = remuxed(plain, folder / f"negative.{ending}", early)
    frames = read_frames(path, [0.105, 0.15])
    assert indices(frames.images) == [10, 11] and frames.times == pytest.approx(
        [0.08, 0.12], abs=2e-3
    )  # the first that is shown is frame 8
    with pytest.raises(
        VideoError, match=r"a frame at 0\.480 s was requested, but the video ends at 0\.2\d\d s"
    ):
        read_frames(path, [0.48])


def test_of_frames_with_equal_presentation_times_one_is_returned_and_times_increase(
    plain: Path, folder: Path
) -> None:
    def repeated(packet: av.Packet, index: int) -> None:
        packet.pts = 40 * (index - index % 2) + 40
        packet.dts = 40 * index

    path = remuxed(plain, folder / "repeated.mkv", repeated)
    with av.open(str(path)) as file:
        assert len({p.pts for p in file.demux(video=0) if p.pts is not None}) == 7
    frames = read_frames(path, [0.0, 0.04, 0.08, 0.2, 0.4])
    assert list(frames.times) == sorted(set(frames.times)) and frames.times == pytest.approx(
        [0.0, 0.08, 0.16, 0.4], abs=2e-3
    )
    assert [index // 2 * 2 for index in indices(frames.images)] == [0, 2, 4, 10]


@pytest.mark.parametrize(
    ("given", "ending"), [("mp4", "avi"), ("mkv", "mp4"), ("mp4", "txt"), ("ts", "mkv")]
)
def test_a_wrong_ending_does_not_matter_to_a_video(given: str, ending: str, folder: Path) -> None:
    path = write(folder / f"named.{given}", REGULAR[:13], bf="0", g="5")
    renamed = path.rename(folder / f"{given} named.{ending}")
    assert indices(read_frames(renamed, [0.2]).images) == [5]


def test_one_frame_is_a_video(folder: Path) -> None:
    path = write(folder / "one.mp4", [0.0])
    assert indices(read_frames(path, [0.0, 0.03]).images) == [0] and probe(path).frames == 1
    with pytest.raises(
        VideoError, match=r"a frame at 3\.000 s was requested, but the video ends at 0\.0\d\d s"
    ):
        read_frames(path, [3.0])


@pytest.mark.parametrize(
    ("width", "height", "codec", "pixels"),
    [(63, 31, "ffv1", "yuv420p"), (65, 3, "ffv1", "rgb24"), (2, 2, "libx264", "yuv420p")],
)
def test_odd_and_tiny_sizes_keep_their_size_and_colors(
    width: int, height: int, codec: str, pixels: str, folder: Path
) -> None:
    path = folder / f"odd{width}.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=5)
        stream.width = width
        stream.height = height
        stream.pix_fmt = "bgr0" if pixels == "rgb24" else pixels
        for index in range(3):
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(
                        np.full((height, width, 3), 60 * (index + 1), np.uint8), format="rgb24"
                    )
                )
            )
        out.mux(stream.encode())
    images = read_frames(path, [0.0, 0.2, 0.4]).images
    assert images.shape == (3, height, width, 3) and (probe(path).width, probe(path).height) == (
        width,
        height,
    )
    assert [int(image.mean()) for image in images] == pytest.approx([60, 120, 180], abs=6)


def test_frames_of_4k_are_read_one_by_one(folder: Path) -> None:
    path = folder / "large.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=5, options={"preset": "ultrafast"})
        stream.width = 3840
        stream.height = 2160
        stream.pix_fmt = "yuv420p"
        for index in range(3):
            out.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(picture(index + 1, 2160, 3840), format="rgb24")
                )
            )
        out.mux(stream.encode())
    frames = read_frames(path, [0.4])
    assert frames.images.shape == (1, 2160, 3840, 3) and frames.images.nbytes == 3840 * 2160 * 3
    assert (
        int(sum((frames.images[0, 1000, 240 + 480 * bit, 1] > 127) << bit for bit in range(8))) == 3
    )


def claims_a_day(path: Path) -> Path:
    """Change what the header of an mp4 or Matroska file says of its duration to 24 hours; the
    pictures and their times stay what they are.
    """
    data = bytearray(path.read_bytes())
    if path.suffix == ".mp4":
        for box, scale, duration in ((b"mvhd", 16, 20), (b"mdhd", 16, 20), (b"tkhd", None, 24)):
            at = data.index(box)
            clock = int.from_bytes(data[at + scale : at + scale + 4], "big") if scale else 1000
            data[at + duration : at + duration + 4] = min(86_400 * clock, 2**32 - 1).to_bytes(
                4, "big"
            )
    else:
        at = data.index(b"\x44\x89\x88")  # Duration, eight bytes, in milliseconds
        data[at + 3 : at + 11] = struct.pack(">d", 86_400_000.0)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_header_that_claims_24_hours_costs_neither_time_nor_memory(
    ending: str, folder: Path
) -> None:
    path = claims_a_day(write(folder / f"day.{ending}", REGULAR[:50], bf="0", g="25"))
    with av.open(str(path)) as file:
        assert (
            ending == "mp4" or (file.duration or 0) / av.time_base > 40_000
        )  # of mp4's headers FFmpeg believes the samples' own
    start = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert probe(path).duration == pytest.approx(2.0, abs=0.05)
    assert indices(read_frames(path, [0.0, 1.0]).images) == [0, 25]
    with pytest.raises(
        VideoError,
        match=(
            rf"day\.{ending}: a frame at 5714\.286 s was requested, but the video ends at"
            r" 2\.0\d\d s"
        ),
    ):
        read_frames(path, sample_times((0.0, 40_000.0), 1.0, 8))
    assert (
        time.process_time() - start < 5
        and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    )


def test_a_packet_that_claims_centuries_is_damage(folder: Path) -> None:
    path = folder / "centuries.mkv"
    with (
        av.open(str(path), "w") as out,
        av.open(str(write(folder / "plain.mkv", REGULAR[:4], bf="0"))) as plain,
    ):
        copy = out.add_stream_from_template(plain.streams.video[0])
        packets = [
            packet for packet in plain.demux(plain.streams.video[0]) if packet.pts is not None
        ]
        for packet in packets:
            if packet is packets[-1]:
                packet.pts = packet.dts = 10**13  # milliseconds
            packet.stream = copy
            out.mux(packet)
    with pytest.raises(
        VideoError,
        match=(
            r"centuries\.mkv declares a length of 1e\+10 s, which no video has:"
            r" its times are damaged\. Re-encode it\."
        ),
    ):
        probe(path)


@pytest.mark.parametrize("declared", [True, False])
def test_pictures_larger_than_8k_are_refused_whatever_the_file_declares(
    declared: bool, folder: Path
) -> None:
    path = folder / f"large-{declared}.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=4)
        stream.width = 8192
        stream.height = 4112
        stream.pix_fmt = "yuvj420p"
        for packet in [*stream.encode(av.VideoFrame(8192, 4112, "yuvj420p")), *stream.encode()]:
            out.mux(packet)
    if not declared:
        data = path.read_bytes()
        assert data.count(b"\xb0\x82\x20\x00\xba\x82\x10\x10") == 1  # PixelWidth, PixelHeight
        path.write_bytes(
            data.replace(b"\xb0\x82\x20\x00\xba\x82\x10\x10", b"\xb0\x82\x00\x20\xba\x82\x00\x20")
        )
    with pytest.raises(
        VideoError,
        match=(
            rf"large-{declared}\.mkv: no frame can be decoded \(Invalid argument: pictures may have"
            r" at most 33,554,432 pixels\)"
        ),
    ):
        probe(path)


def test_an_unknown_codec_is_reported_as_such(folder: Path) -> None:
    path = write(folder / "unknown.mkv", REGULAR[:4], bf="0")
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_NOBODY/KNOWS!"))
    with pytest.raises(
        VideoError,
        match=(
            r"unknown\.mkv holds video of a kind that cannot be decoded here\. Re-encode it, for"
            r" example to mp4\."
        ),
    ):
        probe(path)


def test_a_frame_rate_that_no_video_has_is_damage(folder: Path) -> None:
    path = folder / "fast.avi"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width = 64
        stream.height = 32
        stream.pix_fmt = "yuv420p"
        for packet in [
            *(
                p
                for index in range(4)
                for p in stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24"))
            ),
            *stream.encode(),
        ]:
            out.mux(packet)
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 28  # scale, rate
    data[at : at + 8] = struct.pack("<II", 1, 10**8)
    path.write_bytes(data)
    with pytest.raises(
        VideoError,
        match=(
            r"fast\.avi declares 1e\+08 frames a second, which no video has: its header is"
            r" damaged\. Re-encode it\."
        ),
    ):
        probe(path)


def test_colors_that_cannot_be_converted_are_an_error_with_the_frames_time(folder: Path) -> None:
    path = write(
        folder / "colors.mp4",
        REGULAR[:4],
        bf="0",
        **{"x264-params": "colormatrix=chroma-derived-nc"},
    )
    with pytest.raises(
        VideoError,
        match=r"colors\.mp4: the frame at 0\.040 s cannot be converted to RGB: .+\. Re-encode it\.",
    ):
        read_frames(path, [0.04])


def test_reading_video_imports_no_torch() -> None:
    code = "import sys, modulate.data.video; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_frame_requested_at_its_exact_time_is_reached_by_one_seek(
    folder: Path, decoded: list[float]
) -> None:
    times = [round(0.04 * index + 0.013 * (index % 3), 5) for index in range(60)]
    path = write(folder / "all_keys.mp4", times, g="1", bf="0")
    for index in (1, 20, 40, 58):
        decoded.clear()
        assert read_frames(path, [times[index]]).times == pytest.approx([times[index]], abs=2e-5)
        assert decoded == pytest.approx(
            times[index : index + 2], abs=2e-5
        )  # it, and the next, which shows where it ends
