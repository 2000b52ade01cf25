"""A sweep that is nearly finished."""

import pytest

from modulate.sweeps.sweep import plan_runs
from tests.sweeps.helpers import DUR, finish, sweep


@pytest.fixture
def nearly_finished(tmp_path):
    """(sweep, its runs, their folder): two seeds, all finished but ``encoder-heatmap_dur-s1``."""
    chosen = sweep(
        seeds=[0, 1],
        axes={"encoder": {"coord_rel": {}, "heatmap_dur": DUR}},
        companions=["gaze_free"],
    )
    correct = {
        "base-s0": {0, 1, 2},
        "base-s1": {0, 1},
        "encoder-heatmap_dur-s0": {0, 1, 2, 4},
        "gaze_free-s0": {0},
        "gaze_free-s1": set(),
    }
    runs = plan_runs(chosen)
    folder = tmp_path / "trial"
    for run in runs:
        if run.name in correct:
            finish(run, folder, correct[run.name])
    return chosen, runs, folder
