"""A training and an evaluation on a table, and what the run records of it."""

import json

import pytest

from modulate import cli
from tests.paths import SMALL
from tests.plugins.table.conftest import GAZE
from tests.video_files import write_video

RECIPE = """extends: {small}
name: own
answer: {answer}
data:
  name: table
  params:
    root: {root}
    split: {{shares: {{train: 0.6, test: 0.4}}}}
    skip_bad_rows: true
sampling: {{fps: 2.0, max_frames: 4}}
training:
  stages: [{{name: modulator, train: [modulator], epochs: 1}}]
evaluation: {{conditions: [none, blank, shuffled], bootstrap: 100}}
"""


def run(*args):
    with pytest.raises(SystemExit) as ended:
        cli.main([*map(str, args)])
    assert not ended.value.code


@pytest.fixture
def trained(tmp_path):
    """Return a function that trains on a table of six clips: its run's folder."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, name in enumerate("abcdef"):
        write_video(folder / f"{name}.mp4", size=(128, 64 + 16 * number))
        (folder / f"{name}.gaze").write_text(GAZE)

    def train(answer, header, cells):
        rows = [f"video,gaze,question,{header}"]
        rows += [f"{name}.mp4,{name}.gaze,which object?,{cells}" for name in "abcdef"]
        rows.append(f"none.mp4,a.gaze,which object?,{cells}")
        (folder / "q.csv").write_text("\n".join(rows) + "\n")
        recipe = tmp_path / "own.yaml"
        recipe.write_text(RECIPE.format(small=SMALL, answer=answer, root=folder))
        runs = tmp_path / "runs"
        run("train", recipe, "--runs", runs, "--cache", tmp_path / "cache")
        return runs / "own"

    return train


def test_options_are_trained_on_and_bad_rows_are_in_the_record(trained, capsys, tmp_path):
    folder = trained("word", "options,answer", "mug|plate,plate")
    state = json.loads((folder / "state.json").read_text())
    assert state["finished"] and state["skipped_rows"] == {"q.csv": 1}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["skipped_rows"] == {"q.csv": 1} and metrics["n"] == 2
    assert metrics["signal"]["samples_with_active_signal"] == 2 and metrics["failed"] == []
    run("report", folder, "--out", tmp_path / "report", "--gallery", "0")
    report = (tmp_path / "report" / "report.md").read_text()
    assert "own: the data set skipped 1 row of q.csv that cannot be used" in report
