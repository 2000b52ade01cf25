"""A run's folder: created, reopened, checked and cleared."""

import json
import shutil
from pathlib import Path

import pytest

from modulate.config.recipe import load_recipe
from modulate.errors import CheckpointError, MissingFileError, RecipeError
from modulate.hosts.host import Host
from modulate.hosts.loading import HostParams
from modulate.runs.run import PACKAGES, Run
from modulate.utils.paths import resolve
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


TRACES = [
    "log.jsonl",
    "state.json",
    "metrics.json",
    "metrics-val.json",
    "predictions.jsonl",
    "modulation/config.json",
    "checkpoint/000001.json",
    "evaluation/test-signal.jsonl",
]


@pytest.mark.parametrize("trace", TRACES)
def test_a_folder_with_another_recipe_is_refused_by_what_differs(tmp_path, trace):
    run = Run.create(load_recipe(SMALL), tmp_path)
    (run.folder / trace).parent.mkdir(exist_ok=True)
    (run.folder / trace).write_text("{}\n")
    assert run.has_begun
    with pytest.raises(RecipeError, match=r"differs in training\.batch_size"):
        Run.create(load_recipe(SMALL, ["training.batch_size=2"]), tmp_path)


def test_a_run_that_never_took_a_step_is_begun_anew_with_the_corrected_recipe(tmp_path):
    wrong = Run.create(load_recipe(SMALL), tmp_path)
    (wrong.folder / "log.jsonl").touch()
    (wrong.folder / "checkpoint").mkdir()
    assert not wrong.has_begun
    corrected = load_recipe(SMALL, ["training.batch_size=2"])
    assert Run.create(corrected, tmp_path).folder == wrong.folder
    assert Run.open(wrong.folder).recipe == corrected


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A run begun in a project's folder, with relative paths to its host and to data to be made."""
    host = tmp_path / "project" / "hosts" / "small"
    shutil.copytree(resolve("package:modulate_tabletop/host"), host)
    monkeypatch.chdir(tmp_path / "project")
    changes = ["host.params.path=hosts/small", "data.params.root=world"]
    return Run.create(load_recipe(SMALL, changes), Path("runs"))


def paths_of(run):
    return run.recipe.host.params["path"], run.recipe.data.params["root"]


def test_a_run_finds_its_files_from_any_directory(project, tmp_path, monkeypatch):
    folder = project.folder.absolute()
    assert paths_of(Run.open(folder)) == ("hosts/small", "world")
    monkeypatch.chdir(tmp_path)
    moved = Run.open(folder)
    assert paths_of(moved) == (
        str(tmp_path / "project" / "hosts" / "small"),
        str(tmp_path / "project" / "world"),
    )
    assert Host.load(HostParams(**moved.recipe.host.params))[0].config.model_type == "qwen2_5_vl"
    # Its recipe is still the same one.
    monkeypatch.chdir(tmp_path / "project")
    assert Run.create(project.recipe, Path("runs")).folder == project.folder


def test_a_project_that_was_moved_as_a_whole_has_its_own_files(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    (tmp_path / "moved" / "world").mkdir()
    assert paths_of(Run.open(Path("runs/small"))) == ("hosts/small", "world")
    # Moved, and opened from elsewhere: the message names the folder, and the hub is not asked.
    monkeypatch.chdir(tmp_path)
    lost = Run.open(Path("moved/runs/small"))
    with pytest.raises(MissingFileError, match=f"looked for {tmp_path}/project/hosts/small"):
        Host.load(HostParams(**lost.recipe.host.params))


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
