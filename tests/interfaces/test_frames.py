"""Decoded frames: what every reader of videos returns and every backbone takes."""

import dataclasses

import numpy as np
import pytest

from modulate.data.video import read_frames
from modulate.interfaces.frames import Frames
from tests.video_files import write_video


def test_a_reader_returns_upright_rgb_with_a_time_for_each_frame(tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    frames = read_frames(path, [0.0, 0.5, 1.0])
    assert isinstance(frames, Frames) and frames.images.dtype == np.uint8
    assert frames.images.shape == (3, 48, 64, 3) and len(frames.times) == 3
    assert list(frames.times) == sorted(frames.times)


def test_frames_are_not_assigned_to():
    frames = Frames(np.zeros((1, 2, 2, 3), np.uint8), (0.0,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        frames.times = (1.0,)
