"""A small tree with StreamGaze's layout: real videos, all ten question files, fixations."""

import json

import pytest

from modulate_streamgaze.dataset import StreamGaze, StreamGazeParams
from modulate_streamgaze.questions import TASKS
from tests.plugins.streamgaze.streamgaze_tree import (
    EGTEA,
    HEADER,
    VIDEOS,
    entry,
    fixation,
    write_video,
)


@pytest.fixture(scope="session")
def one_video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(path)
    return path.read_bytes()


@pytest.fixture
def tree(tmp_path, one_video):
    """Write ten tasks on eight videos, each with fixations at 4.0–7.0 and 9.5–10.4 s."""
    root = tmp_path / "streamgaze"
    for folder in ("qa", "videos/original_video", "fixations/egtea", "fixations/others"):
        (root / folder).mkdir(parents=True)
    for stem in VIDEOS:
        (root / f"videos/original_video/{stem}.mp4").write_bytes(one_video)
        place = "egtea" if stem in EGTEA else "others"
        (root / f"fixations/{place}/{stem}_fixation_filtered.csv").write_text(
            HEADER + fixation(0, 4.0, 7.0) + fixation(1, 9.5, 10.4, 0.5, 0.5)
        )
    for task in TASKS:
        (root / f"qa/{task}.json").write_text(
            json.dumps([entry(task, stem, n) for n, stem in enumerate(VIDEOS)])
        )
    return root


@pytest.fixture
def reader(tree):
    def reader(**changes):
        return StreamGaze(StreamGazeParams(root=tree, **changes))

    return reader
