"""Frames of video files, chosen by presentation time.

Times are seconds of the video stream's own clock: a frame's presentation time stamp (PTS) minus the
stream's start time. The first frame is thus at 0 even if the stream starts later (transport
streams, recordings whose sound begins first). H.264 in AVI, which has no PTS, may be one frame
late. Frames are never chosen by index: at a variable frame rate, index / fps is wrong by up to half
a second. Imports no torch.
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

# Frames up to this many seconds ahead are reached by decoding, later ones by seeking.
_SEEK_GAP = 10.0

MAX_FPS = 1e5
"""Highest frame rate of a video, frames per second; a higher one means a damaged header."""


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a file's video stream, as the file declares them.

    Attributes:
        duration: seconds from the first frame to the end of the last.
        fps: average frames per second.
        width: pixels after rotation.
        height: pixels after rotation.
        frames: number of frames; None if the container does not declare it.
    """

    duration: float
    fps: float
    width: int
    height: int
    frames: int | None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video file; yield the container and its video stream.

    Raises :class:`MissingFileError`, :class:`VideoError`.
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
    """Return the first video stream that is not a cover picture, set to decode in several threads.

    Raises :class:`VideoError` if there is none.
    """
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is None:
                raise VideoError(
                    f"{path} holds video of a kind that cannot be decoded here. Re-encode it, for"
                    " example to mp4."
                )
            stream.thread_type = "AUTO"
            # Each picture's own header gives its size, whatever the container declares.
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            return stream
    kinds = sorted({stream.type for stream in container.streams})
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
    """Return the seconds from the stream's start to its end.

    The stream's declared duration is used, or else the end of its last packets. The container's
    duration would not do: depending on the format it counts from 0 or from its start, and it
    includes the sound.
    """
    if stream.time_base is None:
        raise VideoError(
            f"{path} declares no time base, so its frames have no times. Re-encode it."
        )
    seconds = float((stream.duration or _packets_end(container, stream)) * stream.time_base)
    if seconds >= MAX_SECONDS:
        raise VideoError(
            f"{path} declares a length of {seconds:.3g} s, which no video has: its times are"
            " damaged. Re-encode it."
        )
    return seconds


def _packets_end(container: InputContainer, stream: VideoStream) -> int:
    """Return the end of a stream's last packets, in its time base, counted from its start."""
    assert stream.time_base is not None
    start = stream.start_time or 0
    end = start
    estimate = int((container.duration or 0) / av.time_base / stream.time_base)
    # If there is no packet at the estimated end, or seeking fails, the whole stream is read.
    for aim in (start + estimate, start):
        with suppress(av.FFmpegError):  # a truncated file ends here
            container.seek(aim, stream=stream, backward=True)
            for packet in container.demux(stream):
                end = max(end, (packet.pts or 0) + (packet.duration or 0))
        if end > start:
            break
    return end - start


class _Reader:
    """A position in a video stream, moved forward by decoding or seeking.

    Attributes:
        current: the frame at the position.
        ahead: the frame after it, if it is decoded already.
        landed: time (s) of the key frame at which the last seek landed; −inf if it is not known.
        failure: FFmpeg's last error.
        gap: seconds that are decoded rather than skipped by seeking.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, path: Path) -> None:
        self.container = container
        self.stream = stream
        self.path = path
        self.duration = _duration(container, stream, path)
        self.tick = float(stream.time_base or 0)
        self.start = stream.start_time or 0
        # Containers round a PTS to their own clock, so it is only known to half a tick.
        self.epsilon = min(self.tick / 2, 5e-4) + 1e-6
        self.step = 1 / _fps(stream, path)
        self.gap = _SEEK_GAP
        self.current: VideoFrame | None = None
        self.ahead: VideoFrame | None = None
        self.landed = -math.inf
        self.failure: Exception | None = None
        self.source: Iterator[VideoFrame] = iter(())

    def time(self, frame: VideoFrame) -> float:
        """Return the frame's time in seconds from the stream's start."""
        assert frame.pts is not None  # _decoded drops frames without PTS
        return (frame.pts - self.start) * self.tick

    def _decoded(self) -> Iterator[VideoFrame]:
        """Yield frames in presentation order, from the first key frame to the end or an error.

        Pictures shown before that key frame are left out: they may refer to pictures that the seek
        has skipped. A truncated packet ends the stream.
        """
        try:
            for packet in self.container.demux(self.stream):
                if packet.is_corrupt:
                    return
                if self.landed == -math.inf and packet.is_keyframe and packet.pts is not None:
                    self.landed = (packet.pts - self.start) * self.tick
                for frame in packet.decode():
                    if not isinstance(frame, VideoFrame) or frame.pts is None:
                        continue
                    if self.time(frame) >= self.landed - self.tick / 2:
                        yield frame
        except av.FFmpegError as error:
            self.failure = error

    def _seek(self, time: float) -> None:
        """Move to the last key frame shown at or before ``time``, or else to the first frame.

        Containers seek by decoding time. With B-frames that can land after the presentation time,
        so that the seek is repeated at ever earlier times.
        """
        for aim in _seek_aims(time):
            self.landed = -math.inf
            self.failure = None
            try:
                offset = self.start + math.floor(aim / self.tick + 0.5)
                self.container.seek(offset, stream=self.stream, backward=True)
            except av.FFmpegError as error:
                self.failure = error
                continue
            self.source = self._decoded()
            self.current = next(self.source, None)
            self.ahead = None
            if aim < 0 or self._is_reached(time):
                return
        if self.failure and not self._is_reached(time):
            raise VideoError(
                f"{self.path} does not support seeking: {reason(self.failure)}. Re-encode it, for"
                " example to mp4."
            )

    def _is_reached(self, time: float) -> bool:
        """Return whether the current frame is shown at or before ``time``."""
        return self.current is not None and self.time(self.current) <= time + self.epsilon

    def at(self, time: float) -> VideoFrame:
        """Return the frame shown at ``time``: the last one whose PTS is not later, or the first.

        Times must not decrease from call to call.
        """
        if self.current is None or time - self.time(self.current) > self.gap:
            self._seek(time)
            # In a file with few key frames, a seek lands far back and costs more than decoding on.
            if math.isfinite(self.landed):
                self.gap = max(self.gap, 2 * (time - self.landed))
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
        """Raise :class:`VideoError` if ``time`` is after the last decodable frame.

        One more frame interval after that frame's own duration is tolerated.
        """
        reach = self.time(last) + max((last.duration or 0) * self.tick, self.step)
        if time <= reach + self.step + self.epsilon:
            return
        # The declared duration may be less than the last frame's time (variable frame rate with
        # B-frames), so decoding decides what the end is.
        if not self.failure and reach >= self.duration - self.step:
            raise VideoError(
                f"{self.path}: a frame at {time:.3f} s was requested, but the video ends at"
                f" {reach:.3f} s."
            )
        raise VideoError(
            f"{self.path}: the frame at {time:.3f} s cannot be read: decoding stops at"
            f" {reach:.3f} s of the declared {self.duration:.3f} s{self._why()}. The file is"
            " damaged or cut off; copy or re-encode it."
        )

    def _why(self) -> str:
        return f" ({reason(self.failure)})" if self.failure else ""


def _seek_aims(time: float) -> list[float]:
    """Return the times (s) at which to seek for a frame shown at ``time``, in order."""
    aims = [aim for aim in (time - 2**power + 1 for power in range(40)) if aim > 0]
    # Finally well before the start, since the first frame is decoded before it is shown. Some
    # containers refuse that, and accept the start itself.
    return [*aims, -_SEEK_GAP, 0.0]


def _turns(frame: VideoFrame) -> int:
    """Return the counter-clockwise quarter turns that make ``frame`` upright.

    They come from the frame's display matrix.
    """
    return round(frame.rotation / 90) % 4


def probe(path: str | Path) -> VideoInfo:
    """Return the properties of a video, after decoding its first frame.

    Raises the errors of :func:`read_frames`.
    """
    with _opened(Path(path)) as (container, stream):
        reader = _Reader(container, stream, Path(path))
        first = reader.at(0.0)
        width, height = first.width, first.height
        if _turns(first) % 2:
            width, height = height, width
        return VideoInfo(reader.duration, 1 / reader.step, width, height, stream.frames or None)


def read_frames(path: str | Path, times: Sequence[float]) -> Frames:
    """Return the frames shown at ``times`` (s), each once.

    See :func:`read_frames_at` for rules and errors.
    """
    return read_frames_at(path, times)[0]


def read_frames_at(path: str | Path, times: Sequence[float]) -> tuple[Frames, dict[float, int]]:
    """Return the frames shown at ``times``, and the index of the frame shown at each time.

    At each time the last frame is shown whose PTS is not later (rounding of the PTS to the stream's
    clock is allowed for, at most 0.5 ms), or the first frame. Long files are not decoded from their
    start.

    ``times``: seconds from the start of the video stream, at least one, in any order.

    Raises:
        MissingFileError: there is no such file.
        VideoError: the file is empty, not a video, without pictures, or cut off before a requested
            frame; or a time is not finite, or is more than a frame interval after the end.
    """
    path = Path(path)
    requested = sorted(float(time) for time in times)
    if not requested or not all(math.isfinite(time) for time in requested):
        raise VideoError(f"{path}: frames need at least one finite time; got {list(times)}.")
    with _opened(path) as (container, stream):
        reader = _Reader(container, stream, path)
        images: NDArray[np.uint8] | None = None
        shown: list[float] = []
        index_at: dict[float, int] = {}
        for time in requested:
            frame = reader.at(time)
            frame_time = reader.time(frame)
            if not shown or frame_time > shown[-1]:
                try:
                    image = _upright(frame, images)
                except av.FFmpegError as error:
                    raise VideoError(
                        f"{path}: the frame at {frame_time:.3f} s cannot be converted to RGB:"
                        f" {reason(error)}. Re-encode it."
                    ) from error
                if images is None:
                    images = np.empty((len(requested), *image.shape), np.uint8)
                images[len(shown)] = image
                shown.append(frame_time)
            index_at[time] = len(shown) - 1
    assert images is not None
    return Frames(images[: len(shown)], tuple(shown)), index_at


def _upright(frame: VideoFrame, like: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Return ``frame`` as (height, width, 3) uint8 RGB, upright.

    ``like``: earlier frames, to whose size this one is scaled, since a video may change its size.
    """
    turns = _turns(frame)
    width = frame.width
    height = frame.height
    if like is not None:
        height, width = like.shape[2:0:-1] if turns % 2 else like.shape[1:3]
    return np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height), turns)
