"""States and figures of a sweep's runs, counted by hand."""

import json

import pytest

from modulate.errors import RecipeError
from modulate.runs.run import Run
from modulate.sweeps.results import collect_results, run_states, write_results
from modulate.sweeps.sweep import plan_runs
from tests.sweeps.helpers import DUR, finish, sweep

UNFINISHED = "encoder-heatmap_dur-s1"


def test_finished_runs_are_known_and_others_are_begun_or_waiting(nearly_finished):
    _, runs, folder = nearly_finished
    states = run_states(runs, folder)
    finished = {name for name, state in states.items() if state == "finished"}
    assert finished == {run.name for run in runs} - {UNFINISHED}
    assert states[UNFINISHED] == "waiting"
    unfinished = next(run for run in runs if run.name == UNFINISHED)
    Run.create(unfinished.recipe, folder)
    assert run_states(runs, folder)[UNFINISHED] == "begun"
    (folder / "base-s0" / "state.json").write_text(json.dumps({"finished": False}))
    assert run_states(runs, folder)["base-s0"] == "begun"


def test_a_run_with_more_failed_samples_than_allowed_is_not_finished(nearly_finished):
    _, runs, folder = nearly_finished
    unfinished = next(run for run in runs if run.name == UNFINISHED)
    finish(unfinished, folder, {0}, failed=["q1"])
    assert run_states(runs, folder)[UNFINISHED] == "begun"


def test_a_folder_with_runs_of_another_recipe_is_refused_before_anything_starts(nearly_finished):
    _, _, folder = nearly_finished
    changed = sweep(
        seeds=[0, 1],
        axes={"encoder": {"coord_rel": {}, "heatmap_dur": DUR}},
        common={"training": {"batch_size": 2}},
    )
    message = (
        r"base-s0 holds a run of another recipe \(differs in training\.batch_size\): the sweep"
        r" or its base was changed since\."
    )
    with pytest.raises(RecipeError, match=message):
        run_states(plan_runs(changed), folder)


def test_seeds_are_pooled_with_tasks_weighted_equally(nearly_finished):
    chosen, runs, folder = nearly_finished
    results = collect_results(chosen, runs, folder, {})
    assert results["axes"] == {
        "encoder": {"coord_rel": "base", "heatmap_dur": "encoder-heatmap_dur"}
    }
    base = results["groups"]["base"]
    # Samples 0, 2 and 4 are task one, the others task two. The base answers 0 1 2, and 0 1.
    assert base["tasks"]["one"]["accuracy"] == pytest.approx(3 / 6)
    assert base["tasks"]["two"]["accuracy"] == pytest.approx(2 / 6)
    assert base["overall"] == pytest.approx(5 / 12)
    assert (base["n"], base["seeds"]) == (12, [0, 1])
    assert base["per_seed"] == {"0": pytest.approx(0.5), "1": pytest.approx(1 / 3)}
    low, high = base["interval"]
    assert 0 <= low < 5 / 12 < high <= 1
    states = [run["state"] for run in results["runs"]]
    assert states == ["finished", "finished", "finished", "waiting", "finished", "finished"]


def test_groups_are_compared_with_the_base_over_shared_seeds(nearly_finished):
    chosen, runs, folder = nearly_finished
    groups = collect_results(chosen, runs, folder, {})["groups"]
    assert "minus_base" not in groups["base"]
    heatmap = groups["encoder-heatmap_dur"]
    assert heatmap["seeds"] == heatmap["minus_base"]["seeds"] == [0]
    assert heatmap["minus_base"]["difference"] == pytest.approx((1 / 3 + 0) / 2)
    assert heatmap["minus_base"]["tasks"]["one"]["difference"] == pytest.approx(1 / 3)
    gaze_free = groups["gaze_free"]
    assert gaze_free["condition"] == "blank"
    assert gaze_free["beside"] == ["base", "encoder-heatmap_dur"]
    assert gaze_free["minus_base"]["difference"] == pytest.approx(1 / 12 - 5 / 12)


def test_a_run_that_failed_is_in_the_results_with_its_last_lines(nearly_finished):
    chosen, runs, folder = nearly_finished
    log = ["exit code 1", "no such thing"]
    results = write_results(chosen, runs, folder, {UNFINISHED: log})
    (failed,) = [run for run in results["runs"] if run["state"] == "failed"]
    assert (failed["name"], failed["log"]) == (UNFINISHED, log)
    assert json.loads((folder / "sweep.json").read_text()) == results
