"""The small videos of plugin tests are real ones."""

import numpy as np

from modulate import read_frames
from modulate.data.video import probe
from modulate.testing.videos import write_video


def test_a_video_has_the_length_and_size_asked_for_and_grows_brighter(tmp_path):
    path = write_video(tmp_path / "new" / "a.mp4", seconds=2.0, fps=5, size=(32, 48))
    info = probe(path)
    assert (info.height, info.width, round(info.duration, 3)) == (32, 48, 2.0)
    means = read_frames(path, [0.0, 1.0, 1.8]).images.mean((1, 2, 3))
    assert np.all(np.diff(means) > 50)
