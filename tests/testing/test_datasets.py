"""Every shipped data set passes the contract."""

from modulate import DatasetContract
from tests import video_files
from tests.plugins.streamgaze.streamgaze_tree import write_tree, write_video
from tests.testing.shipped import FIXATIONS, names_of, tried_in


class TestTabletop(DatasetContract):
    name = "tabletop"

    def make(self, folder):
        return {"root": folder, "train": 2, "val": 1, "test": 1, "window": 4.0, "max_per_split": 4}


class TestStreamGaze(DatasetContract):
    name = "streamgaze"

    def make(self, folder):
        write_video(folder / "one.mp4")
        write_tree(folder, (folder / "one.mp4").read_bytes())
        return {"root": folder}


class TestTable(DatasetContract):
    name = "table"

    def make(self, folder):
        rows = ["video,question,options,answer,gaze"]
        for number, clip in enumerate("abcdef"):
            video_files.write_video(folder / f"{clip}.mp4", size=(64, 32 + 16 * number))
            (folder / f"{clip}.gaze").write_text(FIXATIONS)
            rows.append(f"{clip}.mp4,which object?,mug|plate|bowl,plate,{clip}.gaze")
        (folder / "q.csv").write_text("\n".join(rows) + "\n")
        return {"root": folder}


def test_every_shipped_data_set_joins_the_contract():
    assert tried_in(globals()) == names_of("dataset")
