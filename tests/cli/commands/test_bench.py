"""`modulate bench`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modulate.cli import build
from modulate_tabletop.make import make_world
from tests.paths import SMALL

QUICK = ["training.batch_size=2", "evaluation.batch_size=2", "data.params.max_per_split=6"]


def run(folder, monkeypatch, *arguments):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(
        build(), ["bench", SMALL, "--steps", "2", "--json", "found.json", *arguments]
    )
    assert done.exit_code == 0, done.output
    return json.loads(Path("found.json").read_text()), done.output


def test_stages_and_evaluation_are_measured_and_compared_with_the_estimate(tmp_path, monkeypatch):
    make_world(tmp_path / "world", train=2, val=1, test=2, seed=0, workers=1)
    found, shown = run(tmp_path, monkeypatch, *QUICK, "host.params.weights=random")
    assert [p["name"] for p in found["phases"]] == [
        "stage modulator",
        "stage joint",
        "evaluation",
    ]
    assert not found["made_up"]
    for phase in found["phases"]:
        assert 0 < phase["seconds"]["low"] <= phase["seconds"]["median"] <= phase["seconds"]["high"]
        assert phase["samples_per_second"] == pytest.approx(2 / phase["seconds"]["median"])
        assert 0.85 < phase["ratio"] == phase["estimated"] / phase["peak"] < 1.15, phase
    assert list(found["hours"]) == [
        "features and first preparation",
        "training",
        "validation",
        "evaluation",
    ]
    assert min(found["hours"].values()) > 0
    assert "The full run:" in shown and "stage joint, 2 samples" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "world"]


def test_noise_clips_are_used_without_data(tmp_path, monkeypatch):
    found, shown = run(
        tmp_path,
        monkeypatch,
        *QUICK,
        "training.stages=[{name: joint, train: [modulator, lora], epochs: 1}]",
        "features.vision_tower_cache_gib=0.1",
    )
    assert found["without"] == ["vision_tower_cache_gib"]
    assert "Measured without `features.vision_tower_cache_gib`" in shown
    assert found["made_up"]
    assert not found["hours"]
    assert "clips of noise" in shown
    assert "There are no data" in shown
    assert [p["name"] for p in found["phases"]] == ["stage joint", "evaluation"]
    assert 0.85 < found["phases"][0]["ratio"] < 1.15
