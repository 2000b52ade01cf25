"""Frames of video files, chosen by presentation time.

Times are seconds of the video stream's own clock: a frame's PTS minus the stream's start time, so
that the first frame is at 0 even where the container starts later (transport streams, recordings
whose sound begins first). H.264 in AVI, which has no PTS, may be one frame late. Frames are never
chosen by index: on files with a variable frame rate, index / fps is wrong by up to half a second.
Needs no torch.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from modulate.data.video_containers import MAX_PIXELS, open_container, reason
from modulate.errors import MissingFileError, VideoError
from modulate.interfaces.frames import Frames
from modulate.interfaces.signal import MAX_SECONDS

# seconds: asked times closer than this are reached by decoding on, farther ones by seeking
_SEEK_GAP = 10.0
MAX_FPS = 1e5
"""Frames a second; a faster rate is none of a video."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its video stream.

    ``duration``: seconds from the first frame to the end of the last; ``fps``: average frames a
    second; ``width`` and ``height``: pixels as shown, after rotation; ``frames``: number of frames,
    None when the container does not say.
    """

    duration: float
    fps: float
    width: int
    height: int
    frames: int | None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open ``path`` and yield the container and its video stream; what cannot be opened raises
    :class:`VideoError`.
    """
    if not path.is_file():
        raise MissingFileError(
            f"There is no video file at {path}. Check the path, or the folder that the recipe"
            " names."
        )
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes). Copy or download it again.")
    container = open_container(path)
    with container:
        yield container, _video_stream(container, path)


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    """Return the first video stream that is no cover picture, set to decode on several threads;
    raise when there is none.
    """
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise VideoError(
                    f"{path} holds video of a kind that cannot be decoded here. Re-encode it, for"
                    " example to mp4."
                )
            stream.thread_type = "AUTO"
            stream.codec_context.options = {
                "max_pixels": str(MAX_PIXELS)
            }  # whatever is declared, a picture's own header says how large it is
            return stream
    kinds = sorted({s.type for s in container.streams})
    raise VideoError(
        f"{path} holds no video stream, only: {', '.join(kinds) or 'nothing'}. Name the file with"
        " the pictures."
    )


def _fps(stream: VideoStream, path: Path) -> float:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    if not rate:
        raise VideoError(f"{path} declares no frame rate. Re-encode it, for example to mp4.")
    if rate > MAX_FPS:
        raise VideoError(
            f"{path} declares {float(rate):.3g} frames a second, which no video has: its header is"
            " damaged. Re-encode it."
        )
    return float(rate)


def _duration(container: InputContainer, stream: VideoStream, path: Path) -> float:
    """Return seconds from the stream's start to its end: as declared for the stream, else read off
    its last packets.

    The container's own duration counts from 0 or from its start, by format, and with the sound; it
    only says where to look.
    """
    if stream.time_base is None:
        raise VideoError(
            f"{path} declares no time base, so its frames have no times. Re-encode it."
        )
    seconds = float((stream.duration or _packets_end(container, stream)) * stream.time_base)
    if seconds >= MAX_SECONDS:
        raise VideoError(
            f"{path} ends at {seconds:.3g} s by its own account, which is no length of a video: its"
            " times are damaged. Re-encode it."
        )
    return seconds


def _packets_end(container: InputContainer, stream: VideoStream) -> int:
    """Return where the last packets of a stream end, in its time base from its start."""
    assert stream.time_base is not None
    start = end = stream.start_time or 0
    about = int((container.duration or 0) / av.time_base / stream.time_base)
    for aim in (
        start + about,
        start,
    ):  # should nothing lie there, or should it refuse, all of it is read
        with suppress(av.FFmpegError):  # cut off: it ends there
            container.seek(aim, stream=stream, backward=True)
            for packet in container.demux(stream):
                end = max(end, (packet.pts or 0) + (packet.duration or 0))
        if end > start:
            break
    return end - start


class _Reader:
    """A position in a video stream: moves to asked times, by decoding on or by seeking, and holds
    the frame shown there.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, path: Path) -> None:
        self.container = container
        self.stream = stream
        self.path = path
        self.duration = _duration(container, stream, path)
        self.tick = float(stream.time_base or 0)
        self.start = stream.start_time or 0
        self.epsilon = (
            min(self.tick / 2, 5e-4) + 1e-6
        )  # a PTS is only known to half a tick; containers round it
        self.step = 1 / _fps(stream, path)
        self.gap = _SEEK_GAP
        self.current: VideoFrame | None = None
        self.ahead: VideoFrame | None = None
        self.landed = -math.inf
        self.failure: Exception | None = None
        self.source: Iterator[VideoFrame] = iter(())

    def time(self, frame: VideoFrame) -> float:
        """Return the frame's time in seconds from the stream's start."""
        assert frame.pts is not None  # frames without PTS are dropped while decoding
        return (frame.pts - self.start) * self.tick

    def _decoded(self) -> Iterator[VideoFrame]:
        """Yield frames in order of presentation from the first key frame on, until the data end or
        break.

        Pictures shown before that key frame may refer to ones that were skipped over, and are left
        out. A packet that is cut off ends it.
        """
        try:
            for packet in self.container.demux(self.stream):
                if packet.is_corrupt:
                    return
                if self.landed == -math.inf and packet.is_keyframe and packet.pts is not None:
                    self.landed = (packet.pts - self.start) * self.tick
                for frame in packet.decode():
                    if (
                        isinstance(frame, VideoFrame)
                        and frame.pts is not None
                        and self.time(frame) >= self.landed - self.tick / 2
                    ):
                        yield frame
        except av.FFmpegError as error:
            self.failure = error

    def _seek(self, time: float) -> None:
        """Move to the last key frame shown at or before ``time``; to the first frame when there is
        none.

        Containers seek by decoding time, which with B-frames can land after the time of
        presentation: then seek earlier, and earlier still.
        """
        aims = [a for a in (time - 2**k + 1 for k in range(40)) if a > 0]
        aims += [
            -_SEEK_GAP,
            0.0,
            # well before the start, as the first frame is decoded before it is shown; some containers
            # refuse that
        ]
        for aim in aims:
            self.landed = -math.inf
            self.failure = None
            try:
                self.container.seek(
                    self.start + math.floor(aim / self.tick + 0.5),
                    stream=self.stream,
                    backward=True,
                )
            except av.FFmpegError as error:
                self.failure = error
                continue
            self.source = self._decoded()
            self.current = next(self.source, None)
            self.ahead = None
            if aim < 0 or (
                self.current is not None and self.time(self.current) <= time + self.epsilon
            ):
                return
        if self.failure and (self.current is None or self.time(self.current) > time + self.epsilon):
            raise VideoError(
                f"{self.path} cannot be sought in: {reason(self.failure)}. Re-encode it, for"
                " example to mp4."
            )

    def at(self, time: float) -> VideoFrame:
        """Return the frame shown at ``time``: the last with PTS ≤ time (plus rounding), or the
        first. Times must not decrease.
        """
        if self.current is None or time - self.time(self.current) > self.gap:
            self._seek(time)
            self.gap = (
                max(self.gap, 2 * (time - self.landed)) if math.isfinite(self.landed) else self.gap
            )
        if self.current is None:
            raise VideoError(
                f"{self.path}: no frame can be decoded{self._why()}. The file is damaged or cut"
                " off, or its pictures are in another file, which is not read; copy or"
                " re-encode it."
            )
        while True:
            self.ahead = self.ahead or next(self.source, None)
            if self.ahead is None:
                break
            if self.time(self.ahead) > time + self.epsilon:
                return self.current
            self.current = self.ahead
            self.ahead = None
        self._check_end(self.current, time)
        return self.current

    def _check_end(self, last: VideoFrame, time: float) -> None:
        """Raise when ``time`` lies past all that decodes: past the last frame's own duration and
        one more frame.
        """
        reach = self.time(last) + max((last.duration or 0) * self.tick, self.step)
        if time > reach + self.step + self.epsilon:
            # The declared duration may lie short of the last frame (variable frame rate with
            # B-frames), so what decodes decides.
            if not self.failure and reach >= self.duration - self.step:
                raise VideoError(
                    f"{self.path}: a frame at {time:.3f} s was asked for, but the video ends at"
                    f" {reach:.3f} s."
                )
            raise VideoError(
                f"{self.path}: the frame at {time:.3f} s cannot be read: decoding stops at"
                f" {reach:.3f} s of the {self.duration:.3f} s declared{self._why()}. The file is"
                " damaged or cut off; copy or re-encode it."
            )

    def _why(self) -> str:
        return f" ({reason(self.failure)})" if self.failure else ""


def _turns(frame: VideoFrame) -> int:
    """Return the quarter turns counter-clockwise that bring ``frame`` upright, from its display
    matrix.
    """
    return round(frame.rotation / 90) % 4


def probe(path: str | Path) -> VideoInfo:
    """Return what the file says about its video, after decoding its first frame.

    Errors as in :func:`read_frames`.
    """
    with _opened(Path(path)) as (container, stream):
        reader = _Reader(container, stream, Path(path))
        first = reader.at(0.0)
        width, height = (
            (first.height, first.width) if _turns(first) % 2 else (first.width, first.height)
        )
        return VideoInfo(reader.duration, 1 / reader.step, width, height, stream.frames or None)


def read_frames(path: str | Path, times: Sequence[float]) -> Frames:
    """Decode the frames shown at ``times``; a frame asked for twice is returned once.

    See :func:`read_frames_at` for rules and errors.
    """
    return read_frames_at(path, times)[0]


def read_frames_at(path: str | Path, times: Sequence[float]) -> tuple[Frames, dict[float, int]]:
    """Decode the frames shown at ``times``, and tell which of them each time shows.

    For each time: the last frame whose PTS is at or before it (the PTS may be later by half a tick
    of the stream's clock, at most 0.5 ms), or the first frame. Times (seconds from the start of the
    video stream, at least one) may come in any order. Long files are not decoded from their start.

    Raises:
        MissingFileError: no such file.
        VideoError: the file is empty, no video, holds only sound, or is cut off before an asked frame; or a time is not finite, or lies
            more than one frame's duration beyond the video's end.
    """
    path = Path(path)
    asked = sorted(float(t) for t in times)
    if not asked or not all(math.isfinite(t) for t in asked):
        raise VideoError(f"{path}: frames need at least one finite time; got {list(times)}.")
    with _opened(path) as (container, stream):
        reader = _Reader(container, stream, path)
        images: NDArray[np.uint8] | None = None
        shown: list[float] = []
        which: dict[float, int] = {}
        for time in asked:
            frame = reader.at(time)
            if not shown or reader.time(frame) > shown[-1]:
                try:
                    image = _upright(frame, images)
                except av.FFmpegError as error:
                    raise VideoError(
                        f"{path}: the frame at {reader.time(frame):.3f} s cannot be brought to RGB:"
                        f" {reason(error)}. Re-encode it."
                    ) from error
                if images is None:
                    images = np.empty((len(asked), *image.shape), np.uint8)
                images[len(shown)] = image
                shown.append(reader.time(frame))
            which[time] = len(shown) - 1
    assert images is not None
    return Frames(images[: len(shown)], tuple(shown)), which


def _upright(frame: VideoFrame, like: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Return ``frame`` as (height, width, 3) uint8 RGB, upright; scaled to the size of ``like``
    where the video changes its own.
    """
    turns = _turns(frame)
    width = frame.width
    height = frame.height
    if like is not None:
        height, width = like.shape[2:0:-1] if turns % 2 else like.shape[1:3]
    return np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height), turns)
