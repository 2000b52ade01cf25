"""`modulate sweep`: its plan, its devices, and a whole sweep in processes."""

import json
import os
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


def test_a_finished_sweep_is_only_shown_again(nearly_finished, sweep_file, tmp_path, capsys):
    _, runs, folder = nearly_finished
    last = next(run for run in runs if run.name == "encoder-heatmap_dur-s1")
    finish(last, folder, {0, 1, 3})  # 7 of 12 answers are correct, the base's 5
    code, out, err = modulate_sweep(capsys, sweep_file, "--runs", tmp_path, "--devices", "cpu")
    assert code == 0 and not (folder / "jobs").exists()
    assert "6 of 6 runs are finished already." in err
    assert "base" in out and "+16.7" in out and f"modulate report {folder}/*-s*/" in out
    results = json.loads((folder / "sweep.json").read_text())
    assert results["groups"]["encoder-heatmap_dur"]["n"] == 12


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("cpu,0", "names no devices; use auto, cpu, or CUDA devices separated by"),
        ("0,,1", "names no devices; use auto, cpu"),
    ],
)
def test_devices_that_make_no_sense_are_refused(devices, message, sweep_file, tmp_path, capsys):
    code, _, err = modulate_sweep(capsys, sweep_file, "--runs", tmp_path, "--devices", devices)
    assert code == 1 and err.startswith("Error: --devices") and message in err


def test_runs_are_dealt_to_the_devices_in_turn_and_share_the_cores(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def dealt(*args):
        return [(slot["CUDA_VISIBLE_DEVICES"], slot["OMP_NUM_THREADS"]) for slot in slots(*args)]

    assert dealt("auto", None, 9) == [("4", "6"), ("7", "6")]
    assert dealt("auto", 3, 9) == [("4", "4"), ("7", "4"), ("4", "4")]
    assert dealt("auto", None, 1) == [("4", "12")]
    assert dealt("1", 1, 9) == [("1", "12")]
    assert dealt("cpu", 2, 9) == [("", "6")] * 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert dealt("auto", None, 9) == [("0", "6"), ("1", "6")]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # the user's own choice wins
    assert dealt("auto", 2, 9) == [("", "5")] * 2
    with pytest.raises(
        RecipeError, match=r"--devices '0': this machine has no CUDA device; use --devices cpu\."
    ):
        slots("0", None, 9)


@pytest.mark.slow
def test_a_sweep_runs_fails_where_it_must_and_continues(tmp_path):
    """One run of two fails and the other finishes; once mended, only the failed one runs again."""
    tree = {
        "name": "real",
        "base": SMALL,
        "common": {
            "data": {"params": {"root": str(tmp_path / "world"), "max_per_split": 6}},
            "evaluation": {"conditions": ["host"]},
        },
        "axes": {"layers": {"three": {}, "nine": {"injection": {"layers": [9]}}}},
    }
    path = tmp_path / "real.yaml"
    path.write_text(yaml.safe_dump(tree))
    folder = tmp_path / "real"
    options = ["--jobs", "2", "--devices", "cpu", "--runs", tmp_path, "--cache", tmp_path / "cache"]
    command = [sys.executable, "-m", "modulate", "sweep", path, *options]

    def start():
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=300, env=environment
        )

    first = start()
    assert first.returncode == 1, first.stderr
    assert "layers-nine-s0: failed (exit code 1)" in first.stderr
    assert "base-s0: finished" in first.stderr
    assert "Injection asks for decoder layer 9" in " ".join(first.stdout.split())
    planned = load_recipe(str(folder / "jobs" / "base-s0.yaml"))
    assert Run.open(folder / "base-s0").recipe == planned
    # It never took a step, so the corrected recipe takes its place.
    path.write_text(path.read_text().replace("- 9\n", "- 2\n"))
    second = start()
    assert second.returncode == 0, second.stderr
    assert "1 of 2 runs are finished already." in second.stderr
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    assert {run["state"] for run in runs} == {"finished"}
