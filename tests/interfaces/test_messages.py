"""modulate.interfaces.messages."""

import numpy as np

from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Message, Picture, VideoClip


def test_visuals_are_clips_and_pictures_in_order():
    picture = Picture(np.zeros((2, 3, 3), np.uint8))
    clip = VideoClip(Frames(np.zeros((1, 2, 3, 3), np.uint8), (4.0,)), (3.0, 4.0))
    message = Message("user", ("First", picture, "then", clip, "?"))
    assert message.visuals == (picture, clip)
    assert Message("assistant", ("Yes.",)).visuals == ()
