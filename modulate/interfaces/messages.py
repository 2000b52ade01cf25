"""Conversations with clips and pictures in them, as hosts encode them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modulate.interfaces.frames import Frames


@dataclass(frozen=True)
class VideoClip:
    """Frames of a video within a conversation.

    Attributes:
        frames: the frames, with their true times.
        window: (start, end) of the clip in seconds of the video.
    """

    frames: Frames
    window: tuple[float, float]


@dataclass(frozen=True)
class Picture:
    """A still image within a conversation.

    Attributes:
        image: (height, width, 3) uint8 RGB, upright.
        window: (start, end) in seconds of the time during which it was looked at, on the clock of
            its signal.
    """

    image: NDArray[np.uint8]
    window: tuple[float, float] = (0.0, 0.0)


Visual = VideoClip | Picture
"""Something to look at."""

Content = str | Visual
"""A part of a message: text, or something to look at."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation: its parts, in the order in which the host reads them."""

    role: Literal["system", "user", "assistant"]
    content: tuple[Content, ...]

    @property
    def visuals(self) -> tuple[Visual, ...]:
        """Its clips and pictures, in order."""
        return tuple(part for part in self.content if not isinstance(part, str))


def user_turn(*content: Content) -> list[Message]:
    """Return a conversation of one message, the user's."""
    return [Message("user", content)]
