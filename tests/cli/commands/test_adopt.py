"""`modulate adopt`: weights trained elsewhere become a finished run."""

from pathlib import Path

from modulate.runs.run import Run
from tests.paths import SMALL
from tests.tiny import small_pipeline


def saved_modulation(folder):
    small_pipeline(folder).fresh_modulation().save_pretrained(folder / "elsewhere")
    return folder / "elsewhere"


def test_weights_become_a_finished_run(modulate, tmp_path):
    weights = saved_modulation(tmp_path)
    code, out, err = modulate("adopt", weights, SMALL, "--runs", tmp_path / "runs")
    assert code == 0, err
    assert str(tmp_path / "runs" / "small") in out.splitlines()[-1]
    state = Run.open(tmp_path / "runs" / "small").read_state()
    assert state.finished and state.adopted == str(weights) and state.steps == 0


def test_weights_of_another_recipe_are_refused(modulate, tmp_path):
    weights = saved_modulation(tmp_path)
    arguments = ["adopt", weights, SMALL, "--runs", tmp_path / "runs"]
    code, _, err = modulate(*arguments, "injection.layers=[0, 1]")
    assert code == 1 and "injection.layers: the recipe says" in err
    assert not Path(tmp_path / "runs" / "small" / "modulation").exists()
