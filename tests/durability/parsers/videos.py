"""The parser of video files."""

import contextlib
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from tests.durability import mutations as mutate
from tests.durability.parsers.parser import Parser, scratch, through_file


def video_seeds() -> list[bytes]:
    import av

    found = []
    for ending, codec in (
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("avi", "mpeg4"),
        ("ts", "libx264"),
        ("webm", "libvpx-vp9"),
    ):
        path = scratch() / f"seed.{ending}"
        with contextlib.suppress(av.FFmpegError, ValueError), av.open(str(path), "w") as out:
            stream = out.add_stream(codec, rate=4)
            stream.width = 32
            stream.height = 32
            stream.pix_fmt = "yuv420p"
            for index in range(8):
                frame = av.VideoFrame.from_ndarray(
                    np.full((32, 32, 3), 30 * index, np.uint8), format="rgb24"
                )
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        if path.is_file() and path.stat().st_size < mutate.LONGEST:
            found.append(path.read_bytes())
    return found


def read_video(path: Path) -> Any:
    from modulate.data.video import probe, read_frames
    from modulate.interfaces.visual_grid import sample_times

    info = probe(path)
    return info, read_frames(path, sample_times((0.0, min(info.duration, 1e6)), 2.0, 3))


def check_video(result: Any, data: bytes) -> None:
    info, frames = result
    assert (
        1 <= len(frames.times) <= 3
        and frames.images.shape[0] == len(frames.times)
        and frames.images.shape[3] == 3
        and frames.images.dtype == np.uint8
    )
    assert all(math.isfinite(time) for time in frames.times) and all(
        b > a for a, b in itertools.pairwise(frames.times)
    )
    assert 0 <= info.duration < 1e7 and 0 < info.fps <= 1e5 and info.width > 0 and info.height > 0


def parsers() -> list[Parser]:
    """Return the parser of videos."""
    video = Parser(
        name="video",
        what="video files",
        seeds=video_seeds,
        parse=through_file(read_video, "v.mp4"),
        check=check_video,
        modules=("modulate.data.video",),
        never=("read_frames_at.<locals>",),
        share=0.02,
    )
    return [video]
