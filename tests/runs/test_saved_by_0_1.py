"""A run and a modulation that version 0.1 saved: they load, evaluate to the same answers, and their
training goes on.
"""

import shutil

import pytest

from modulate import Modulation
from modulate.cli import main
from modulate.config.recipe import Recipe
from modulate.config.renamed_keys import RENAMED
from modulate.evaluation.predictions import read_predictions
from modulate.runs.run import Run
from tests.paths import FIXTURES

SAVED = FIXTURES / "saved_by_0_1" / "run"


@pytest.fixture
def run(tmp_path):
    shutil.copytree(SAVED, tmp_path / "run")
    return Run.open(tmp_path / "run")


def answers(run):
    return read_predictions(run.predictions("test"))


def test_its_recipe_means_the_same_under_todays_keys(run):
    recipe = run.recipe
    assert isinstance(recipe, Recipe) and recipe.sampling.processor_fps == 2.0
    assert recipe.training.batch_by == "length" and recipe.training.prefetch_batches == 2
    assert recipe.training.gradient_checkpointing and recipe.evaluation.batch_by == "clip"
    features = recipe.features
    found = (
        features.vision_tower_cache_gib,
        features.vision_tower_cache_by,
        features.hidden_state_cache_gib,
    )
    assert found == (0.01, "clip", 0.01)


def test_its_modulation_loads_and_its_records_are_read(run):
    assert (
        run.altered() == []
        and run.read_state().finished
        and run.read_environment().versions["modulate"] == "0.1.0"
    )
    assert Modulation.from_pretrained(run.weights).lora is not None
    assert {len(rows) for rows in answers(run).values()} == {12} and len(answers(run)) == 7


@pytest.fixture
def same_backbone(run):
    """The saved run's backbone has random weights, which differ between releases of torch."""
    backbone = run.recipe.backbone.build("backbone")
    if backbone.fingerprint() != run.read_state().made_of["backbone"]:
        pytest.skip("this torch draws other random weights than the one that the run was made with")


def test_evaluated_again_it_gives_the_answers_it_gave(run, same_backbone, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    saved = answers(run)
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(run.folder), "--cache", str(tmp_path / "cache")])
    assert ended.value.code == 0
    again = answers(run)
    assert again.keys() == saved.keys()
    for condition, rows in saved.items():
        for before, after in zip(rows, again[condition], strict=True):
            assert (after.id, after.prediction) == (before.id, before.prediction)
            assert after.logits == pytest.approx(before.logits, abs=2e-3)


def test_the_same_training_asked_for_again_is_taken_for_finished(
    run, same_backbone, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    text = (run.folder / "recipe.yaml").read_text()
    for old, new in RENAMED.items():
        text = text.replace(f"  {old.rpartition('.')[2]}: ", f"  {new}: ")
    (tmp_path / "today.yaml").write_text(text)
    shutil.move(run.folder, tmp_path / "saved")
    with pytest.raises(SystemExit) as ended:
        main(["train", "today.yaml", "--runs", str(tmp_path), "--cache", str(tmp_path / "cache")])
    assert ended.value.code == 0 and Run.open(tmp_path / "saved").read_state().steps == 4
