"""Decoded frames of a clip."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frames:
    """Decoded frames. ``images``: (frame, height, width, 3) uint8 RGB, upright; ``times``: each
    frame's own PTS in seconds, increasing.
    """

    images: NDArray[np.uint8]
    times: tuple[float, ...]
