"""modulate.interfaces.messages."""

import numpy as np

from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import Message, Picture, VideoClip, user_turn


def test_visuals_are_clips_and_pictures_in_order():
    picture = Picture(np.zeros((2, 3, 3), np.uint8))
    clip = VideoClip(Frames(np.zeros((1, 2, 3, 3), np.uint8), (4.0,)), (3.0, 4.0))
    message = Message("user", ("First", picture, "then", clip, "?"))
    assert message.visuals == (picture, clip)
    assert Message("assistant", ("Yes.",)).visuals == ()


def test_a_user_turn_is_one_message_with_its_parts_in_order():
    picture = Picture(np.zeros((2, 3, 3), np.uint8))
    (message,) = user_turn("Look:", picture, "What is it?")
    assert message == Message("user", ("Look:", picture, "What is it?"))
