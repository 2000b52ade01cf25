"""What the runs beside a sweep's runs are asked: the evaluation of the run that they stand beside,
under the base's conditions.
"""

import pytest

from modulate.sweeps.sweep import Sweep, plan_runs
from tests.paths import SMALL


@pytest.mark.parametrize(
    ("kind", "conditions"), [("lora_only", ("host",)), ("gaze_free", ("none", "host"))]
)
def test_a_companion_has_its_run_s_evaluation_and_of_the_base_s_conditions_those_that_mean_something(
    kind, conditions
):
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
        asked = runs[name].recipe.evaluation
        assert (asked.bootstrap, asked.batch_size, asked.conditions, asked.inputs) == (
            bootstrap,
            batch_size,
            conditions,
            {},
        )
    assert (
        runs[f"{kind}-scored-finely-s0"].beside == ("scored-finely-s0",)
        and runs[f"{kind}-s0"].recipe.lora.rank == 2
    )


def test_runs_are_in_order_the_base_of_every_seed_before_its_variants_and_companions_last():
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
    assert [run.role for run in runs] == ["base", "variant"] * 2 + ["lora_only"] * 4 + [
        "gaze_free"
    ] * 4
    assert [run.recipe.seed for run in runs] == [7, 7, 0, 0] + [7, 7, 0, 0] * 2
    assert (
        runs[1].options == {"rank": "four"}
        and runs[0].options == {}
        and all(run.recipe.name == run.name for run in runs)
    )
