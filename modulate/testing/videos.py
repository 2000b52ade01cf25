"""Small real videos for tests of data sets."""

from pathlib import Path

import av
import numpy as np


def write_video(
    path: Path, seconds: float = 4.0, fps: int = 10, size: tuple[int, int] = (48, 64)
) -> Path:
    """Write an H.264 video whose frames grow brighter, and return its path.

    ``size``: (height, width) in pixels, even numbers. Missing folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    count = round(seconds * fps)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(count):
            gray = round(255 * index / count)
            image = np.full((height, width, 3), gray, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path
