"""Companions: how they are evaluated, and in which order they come."""

import pytest

from modulate.sweeps.sweep import Sweep, plan_runs
from tests.paths import SMALL


@pytest.mark.parametrize(
    ("kind", "conditions"), [("lora_only", ("host",)), ("gaze_free", ("none", "host"))]
)
def test_a_companion_is_evaluated_like_its_run_under_the_conditions_that_apply(kind, conditions):
    axes = {
        "scored": {"finely": {"evaluation": {"bootstrap": 777, "conditions": ["blank"]}}},
        "rank": {"four": {"lora": {"rank": 4}}},
    }
    sweep = Sweep.model_validate(
        {
            "name": "trial",
            "base": SMALL,
            "axes": axes,
            "companions": [kind],
            "others": {"evaluation": {"batch_size": 5}},
        }
    )
    runs = {run.name: run for run in plan_runs(sweep)}
    assert runs["scored-finely-s0"].recipe.evaluation.conditions == ("blank",)
    for name, bootstrap, batch_size in (
        (f"{kind}-s0", 100, 32),
        (f"{kind}-scored-finely-s0", 777, 5),
        (f"{kind}-rank-four-s0", 100, 5),
    ):
        evaluation = runs[name].recipe.evaluation
        assert (evaluation.bootstrap, evaluation.batch_size) == (bootstrap, batch_size)
        assert evaluation.conditions == conditions and evaluation.inputs == {}
    assert runs[f"{kind}-scored-finely-s0"].beside == ("scored-finely-s0",)
    assert runs[f"{kind}-s0"].recipe.lora.rank == 2


def test_the_base_of_each_seed_comes_before_its_variants_and_companions_come_last():
    sweep = Sweep.model_validate(
        {
            "name": "trial",
            "base": SMALL,
            "axes": {"rank": {"four": {"lora": {"rank": 4}}}},
            "seeds": [7, 0],
            "companions": ["lora_only", "gaze_free"],
        }
    )
    runs = plan_runs(sweep)
    assert [run.name for run in runs[:4]] == ["base-s7", "rank-four-s7", "base-s0", "rank-four-s0"]
    roles = ["base", "variant"] * 2 + ["lora_only"] * 4 + ["gaze_free"] * 4
    assert [run.role for run in runs] == roles
    assert [run.recipe.seed for run in runs] == [7, 7, 0, 0] + [7, 7, 0, 0] * 2
    assert (runs[0].options, runs[1].options) == ({}, {"rank": "four"})
    assert all(run.recipe.name == run.name for run in runs)
