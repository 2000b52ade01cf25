"""The published rows, against the means that the paper reports for them."""

import pytest

from modulate_streamgaze.dataset import StreamGaze, StreamGazeParams
from modulate_streamgaze.questions import TASKS
from modulate_tabletop.dataset import Tabletop, TabletopParams


def test_every_published_mean_is_the_mean_of_its_tasks(tmp_path):
    found = StreamGaze(StreamGazeParams(root=tmp_path)).reference()
    assert sorted(found.labels) == sorted(TASKS) and len(found.rows) == 15
    full = [row for row in found.rows if row.accuracies]
    assert [row.name for row in full] == [
        "human",
        "GazeQwen",
        "GPT-4o",
        "Qwen2.5-VL 7B",
        "InternVL3.5 8B",
    ]
    for row in full:
        assert set(row.accuracies) == set(TASKS)
        assert sum(row.accuracies.values()) / 10 == pytest.approx(row.overall, abs=1.1e-3), (
            row.name
        )  # both are rounded to three digits
    assert all("arXiv 2603.25841" in row.source and 0 < row.overall < 1 for row in found.rows)


def test_gazeqwens_row_is_where_the_paper_has_it(tmp_path):
    row = next(
        row
        for row in StreamGaze(StreamGazeParams(root=tmp_path)).reference().rows
        if row.name == "GazeQwen"
    )
    assert (
        row.accuracies["past_gaze_sequence_matching"] == 0.609
        and row.accuracies["proactive_object_appearance_alert"] == 0.748
    )


def test_what_is_not_comparable_is_said(tmp_path):
    notes = " ".join(StreamGaze(StreamGazeParams(root=tmp_path)).reference().notes)
    assert all(
        text in notes
        for text in (
            "zero-shot on the whole benchmark",
            "no control",
            "9 of the 10 EGTEA participants",
        )
    )


def test_the_tabletop_has_the_names_of_the_tasks_and_no_published_rows(tmp_path):
    found = Tabletop(TabletopParams(root=tmp_path / "none")).reference()
    assert (
        found.labels["present_object_identification_hard"] == "OI-H"
        and not found.rows
        and not found.notes
    )
