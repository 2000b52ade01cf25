"""Small real video files."""

from pathlib import Path

import av
import numpy as np


def write_video(path: Path, seconds: float = 2.0, rate: int = 10, size=(64, 48)) -> Path:
    """Write an H.264 video whose frames grow brighter."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = width
        stream.height = height
        stream.pix_fmt = "yuv420p"
        for index in range(int(seconds * rate)):
            image = np.full((height, width, 3), 10 * index % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path
