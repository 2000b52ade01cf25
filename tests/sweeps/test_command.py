"""`modulate sweep`: its plan, its devices, and a whole sweep in processes."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from modulate import cli
from modulate.cli.commands.sweep import slots
from modulate.config.recipe import load_recipe
from modulate.errors import RecipeError
from modulate.runs.run import Run
from tests.paths import SMALL
from tests.sweeps.helpers import DUR, finish


def modulate_sweep(capsys, *args):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", *map(str, args)])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.fixture
def sweep_file(tmp_path):
    path = tmp_path / "trial.yaml"
    tree = {
        "name": "trial",
        "base": SMALL,
        "axes": {"encoder": {"coord_rel": {}, "heatmap_dur": DUR}},
        "seeds": [0, 1],
        "companions": ["gaze_free"],
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_dry_run_lists_every_run_and_starts_nothing(sweep_file, tmp_path, capsys):
    code, out, _ = modulate_sweep(capsys, sweep_file, "--dry-run", "--runs", tmp_path / "runs")
    assert code == 0 and out.count("waiting") == 6
    for text in ("trial: 6 runs around", "encoder-heatmap_dur-s1", "beside 2 runs"):
        assert text in out
    assert not (tmp_path / "runs").exists()


BODY1
