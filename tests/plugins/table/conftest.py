"""A folder of real clips with gaze, and tables on them."""

import pytest
from PIL import Image

from modulate_table.dataset import Table
from modulate_table.params import TableParams
from tests.video_files import write_video

GAZE = "start_time,end_time,center_x,center_y\n0.2,0.9,0.4,0.5\n1.0,1.8,0.6,0.5\n"


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """A folder with six clips of 2 s, their gaze, and a picture."""
    folder = tmp_path_factory.mktemp("media")
    first = write_video(folder / "a.mp4")
    for length, name in enumerate("bcdef"):
        # Files with the same pictures, but another box at the end, are different files.
        box = (8 + length).to_bytes(4, "big") + b"free" + bytes(length)
        (folder / f"{name}.mp4").write_bytes(first.read_bytes() + box)
    for name in "abcdef":
        (folder / f"{name}.csv").write_text(GAZE)
    Image.new("RGB", (32, 24), "red").save(folder / "red.png")
    return folder


@pytest.fixture
def folder(media, tmp_path):
    """A copy of the media, with their gaze in a folder of its own."""
    (tmp_path / "gaze").mkdir()
    for path in media.iterdir():
        target = tmp_path / ("gaze" if path.suffix == ".csv" else "") / path.name
        target.symlink_to(path)
    return tmp_path


@pytest.fixture
def table(folder):
    """Return a function that writes a table and opens it: table("t.csv", text, **params)."""

    def opened(name, text, **params):
        (folder / name).write_text(text, encoding="utf-8")
        return Table(TableParams(root=folder, files=name, **params))

    return opened
