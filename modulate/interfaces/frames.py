"""Decoded frames of a clip."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frames:
    """Decoded frames of a clip.

    Attributes:
        images: (frame, height, width, 3) uint8 RGB, upright.
        times: presentation time of each frame in seconds, increasing.
    """

    images: NDArray[np.uint8]
    times: tuple[float, ...]
