"""A run's folder: created, reopened, checked and cleared."""

import json
import shutil

import pytest

from modulate.config.recipe import load_recipe
from modulate.errors import CheckpointError, MissingFileError, RecipeError
from modulate.runs.run import PACKAGES, Run
from tests.paths import FIXTURES, SMALL


@pytest.fixture
def finished(tmp_path):
    shutil.copytree(FIXTURES / "saved_by_0_1" / "run", tmp_path / "saved")
    return Run.open(tmp_path / "saved")


def test_a_new_run_notes_its_recipe_and_environment(tmp_path):
    run = Run.create(load_recipe(SMALL), tmp_path)
    assert run.folder == tmp_path / "small" and Run.open(run.folder).recipe == run.recipe
    environment = run.read_environment()
    assert set(PACKAGES) == environment.versions.keys()
    assert not run.read_state().finished


def test_a_folder_with_another_recipe_is_refused_by_what_differs(tmp_path):
    Run.create(load_recipe(SMALL), tmp_path)
    with pytest.raises(RecipeError, match=r"differs in training\.batch_size"):
        Run.create(load_recipe(SMALL, ["training.batch_size=2"]), tmp_path)


def test_a_folder_without_a_recipe_is_not_a_run(tmp_path):
    with pytest.raises(MissingFileError, match=r"is not a run: recipe\.yaml is missing"):
        Run.open(tmp_path)


def test_a_run_is_locked_once_however_often_one_process_asks(finished):
    with finished.locked(), finished.locked():
        assert (finished.folder / ".lock").stat().st_size > 0


def test_changed_weights_are_noticed_by_file(finished):
    finished.check_weights()
    config = finished.weights / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()), indent=1))
    assert finished.altered() == [config]
    with pytest.raises(CheckpointError, match=r"config\.json was changed since training wrote it"):
        finished.check_weights()


def test_another_split_has_files_of_its_own(finished):
    assert finished.predictions("test").name == "predictions.jsonl"
    assert finished.predictions("val").name == "predictions-val.jsonl"
    assert finished.metrics("val").name == "metrics-val.json"


def test_clearing_leaves_recipe_and_environment(finished):
    finished.clear()
    left = {path.name for path in finished.folder.iterdir() if path.name != "checkpoint"}
    assert left - {".lock"} == {"recipe.yaml", "environment.json"}
    assert finished.checkpoints.latest() is None and finished.read_json("metrics.json") == {}
