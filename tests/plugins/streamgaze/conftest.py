"""A small tree with StreamGaze's layout: real videos, all ten question files, fixations."""

import pytest

from modulate_streamgaze.dataset import StreamGaze, StreamGazeParams
from tests.plugins.streamgaze.streamgaze_tree import write_tree, write_video


@pytest.fixture(scope="session")
def one_video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(path)
    return path.read_bytes()


@pytest.fixture
def tree(tmp_path, one_video):
    """Write ten tasks on eight videos, each with fixations at 4.0–7.0 and 9.5–10.4 s."""
    root = tmp_path / "streamgaze"
    write_tree(root, one_video)
    return root


@pytest.fixture
def reader(tree):
    def reader(**changes):
        return StreamGaze(StreamGazeParams(root=tree, **changes))

    return reader
