"""Sweeps: what a file expands to, and what is refused before anything starts."""

from pathlib import Path

import pytest
import yaml

from modulate.config.recipe import dump, load_recipe, sweep_paths
from modulate.errors import MissingFileError, PluginError, RecipeError
from modulate.sweeps.sweep import Sweep, load_sweep, plan_runs
from tests.paths import SMALL
from tests.sweeps.helpers import AXES, DUR, PE, by_name, names, sweep

NO_LORA = {
    "lora": None,
    "training": {"stages": [{"name": "modulator", "train": ["modulator"], "epochs": 2}]},
}


# --- what a sweep expands to


def test_one_axis_at_a_time_has_the_base_once_and_every_other_option_once():
    runs = by_name(sweep())
    assert list(runs) == [
        "base-s0",
        "encoder-heatmap_dur-s0",
        "encoder-coord_pe-s0",
        "sharing-shared-s0",
    ]
    assert runs["base-s0"].role == "base" and runs["base-s0"].options == {
        "encoder": "coord_rel",
        "sharing": "per_layer",
    }
    assert runs["encoder-coord_pe-s0"].recipe == load_recipe(
        SMALL, ["name=encoder-coord_pe-s0", "encoder={name: coord_pe, params: {dim: 32}}"]
    )
    assert runs["base-s0"].recipe == load_recipe(SMALL, ["name=base-s0"])


def test_a_grid_has_every_combination_once_and_names_the_base_base():
    runs = by_name(sweep(mode="grid"))
    assert len(runs) == 6 and runs["base-s0"].options == {
        "encoder": "coord_rel",
        "sharing": "per_layer",
    }
    both = runs["encoder-coord_pe-sharing-shared-s0"].recipe
    assert both.encoder.name == "coord_pe" and both.modulator.params == {
        "width": 32,
        "latents": 4,
        "blocks": 1,
        "sharing": "shared",
    }
    assert names(sweep(mode="grid", axes={"encoder": {"heatmap_dur": DUR, "coord_pe": PE}})) == [
        "encoder-heatmap_dur-s0",
        "encoder-coord_pe-s0",
    ]


def test_every_run_is_repeated_with_every_seed():
    runs = by_name(sweep(seeds=[3, 5]))
    assert len(runs) == 8 and {
        run.recipe.seed for name, run in runs.items() if name.endswith("-s5")
    } == {5}


def test_equal_recipes_run_once_however_they_are_written():
    spelled_out = {
        "encoder": {"name": "coord_rel", "params": {"dim": 32, "temperature": 10000.0}}
    }  # the default, written out
    runs = by_name(
        sweep(
            axes={
                "encoder": {"same": spelled_out, "heatmap_dur": DUR},
                "other": {"heat": ["encoder.name=heatmap_dur"]},
            }
        )
    )
    assert list(runs) == ["base-s0", "encoder-heatmap_dur-s0"]
    assert runs["base-s0"].options == {"encoder": "same"} and runs[
        "encoder-heatmap_dur-s0"
    ].options == {"encoder": "heatmap_dur", "other": "heat"}
    assert names(
        sweep(mode="grid", axes={"encoder": {"heatmap_dur": DUR, "same": spelled_out}})
    ) == [
        "base-s0",
        "encoder-heatmap_dur-s0",
    ]


def test_common_overrides_the_base_then_others_and_an_option_has_the_last_word():
    chosen = sweep(
        common=[
            "training.batch_size=2",
            {"evaluation": {"conditions": ["none", "shifted"]}},
            "training.stages.0.epochs=3",
        ],
        others={"evaluation": {"conditions": ["none"]}, "training": {"weight_decay": 0.5}},
        axes={
            "encoder": {"coord_rel": {}, "heatmap_dur": DUR | {"training": {"weight_decay": 0.25}}}
        },
    )
    base, other = (run.recipe for run in plan_runs(chosen))
    assert (
        base.training.batch_size == other.training.batch_size == 2
        and base.training.stages[0].epochs == other.training.stages[0].epochs == 3
    )
    assert base.evaluation.conditions == ("none", "shifted") and other.evaluation.conditions == (
        "none",
    )
    assert base.training.weight_decay == 0.01 and other.training.weight_decay == 0.25


def test_overrides_of_the_command_line_change_the_sweep_or_every_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "mine",
                "base": "small.yaml",
                "axes": AXES,
                "common": {"training": {"batch_size": 2}},
            }
        )
    )
    (tmp_path / "small.yaml").write_text(Path(SMALL).read_text())  # a base may lie beside the sweep
    runs = plan_runs(load_sweep(str(file), ["seeds=[1,2]", "training.batch_size=4", "name=other"]))
    assert len(runs) == 8 and {run.recipe.training.batch_size for run in runs} == {4}
    assert load_sweep(str(file), ["name=other"]).name == "other"
    with pytest.raises(
        RecipeError,
        match=(
            r"Override 'axes\.encoder=3': the keys of a sweep are replaced whole, e\.g\."
            r" seeds=\[0,1\]; 'axes\.encoder' is below one\."
        ),
    ):
        load_sweep(str(file), ["axes.encoder=3"])


# --- companions


def test_lora_only_is_shared_by_runs_that_differ_only_in_their_modulation():
    runs = by_name(
        sweep(
            companions=["lora_only"],
            axes=AXES
            | {
                "rank": {"two": {}, "four": {"lora": {"rank": 4}}},
                "lora": {"none": NO_LORA},
            },
        )
    )
    assert [name for name, run in runs.items() if run.role == "lora_only"] == [
        "lora_only-s0",
        "lora_only-rank-four-s0",
    ]
    alone = runs["lora_only-s0"]
    assert alone.beside == (
        "base-s0",
        "encoder-heatmap_dur-s0",
        "encoder-coord_pe-s0",
        "sharing-shared-s0",
    )  # and not the run without LoRA
    assert alone.recipe.training.condition == "none" and [
        (stage.name, stage.train, stage.epochs) for stage in alone.recipe.training.stages
    ] == [("joint", ("lora",), 1)]
    assert (
        alone.recipe.evaluation.conditions == ("host",)
        and runs["lora_only-rank-four-s0"].recipe.lora.rank == 4
    )


def test_the_gaze_free_run_is_shared_by_encoders_and_by_nothing_else():
    runs = by_name(sweep(companions=["gaze_free"]))
    free = {name: run for name, run in runs.items() if run.role == "gaze_free"}
    assert {name: run.beside for name, run in free.items()} == {
        "gaze_free-s0": ("base-s0", "encoder-heatmap_dur-s0", "encoder-coord_pe-s0"),
        "gaze_free-sharing-shared-s0": ("sharing-shared-s0",),
    }
    recipe = free["gaze_free-sharing-shared-s0"].recipe
    assert (
        recipe.training.condition == "blank"
        and recipe.modulator.params["sharing"] == "shared"
        and recipe.evaluation.conditions == ("none", "host")
    )
    assert (
        names(sweep(companions=["gaze_free"], beside="base"))[-1] == "gaze_free-s0"
        and len(names(sweep(companions=["gaze_free"], beside="base"))) == 5
    )


def test_impossible_companions_are_refused_beside_the_base():
    with pytest.raises(
        RecipeError,
        match=(
            r"Sweep trial: lora_only cannot stand beside base-s0: no stage of it trains LoRA\. Take"
            r" it out of `companions`\."
        ),
    ):
        plan_runs(sweep(companions=["lora_only"], common=NO_LORA))
    with pytest.raises(
        RecipeError,
        match=(
            r"gaze_free cannot stand beside base-s0: with injection\.empty `none` a blank signal"
            r" adds nothing"
        ),
    ):
        plan_runs(sweep(companions=["gaze_free"], common={"injection": {"empty": "none"}}))


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"axes": {"e": {"a": {"encoder": {"name": "cord_rel"}}}}},
            PluginError,
            (
                r"Sweep trial, run e-a-s0: Unknown signal_encoder 'cord_rel'\. Did you mean"
                r" 'coord_rel'"
            ),
        ),
        (
            {"axes": {"e": {"a": {"encoder": {"params": {"dims": 3}}}}}},
            RecipeError,
            (
                r"Sweep trial, run e-a-s0: encoder\.params of coord_rel is not valid:\n  dims:"
                r" unknown key"
            ),
        ),
        (
            {"axes": {"e": {"a": {"encodr": {}}}}},
            RecipeError,
            r"Sweep trial, axis e, option a: unknown recipe key 'encodr'\. Did you mean 'encoder'",
        ),
        (
            {"axes": {"e": {"a": ["trainig.batch_size=4"]}}},
            RecipeError,
            r"Sweep trial, axis e, option a: Override 'trainig\.batch_size=4': unknown recipe key",
        ),
        (
            {"axes": {"e": {"a": ["seed=4"]}}},
            RecipeError,
            (
                r"axis e, option a: 'seed' cannot be overridden\. A sweep names its runs itself;"
                r" set `seeds` and `base` instead\."
            ),
        ),
        (
            {"common": {"name": "x"}},
            RecipeError,
            r"Sweep trial, common: 'name' cannot be overridden",
        ),
        (
            {"axes": {"e": {"a": DUR, "b": DUR}}},
            RecipeError,
            r"Sweep trial, axis e: the options 'a' and 'b' come to the same run; take one out\.",
        ),
        (
            {"axes": {"e": {"a": {}, "b": {}}}},
            RecipeError,
            r"the options 'a' and 'b' come to the same run",
        ),
        (
            {"base": "gazeqwen_tny"},
            MissingFileError,
            r"No recipe 'gazeqwen_tny'.*Did you mean 'gazeqwen_tiny'",
        ),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_with_axis_and_option(changes, error, message):
    with pytest.raises(error, match=message):
        plan_runs(sweep(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, r"seeds: Tuple should have at least 1 item"),
        ({"seeds": [1, 1]}, r"seeds: no value may be listed twice"),
        ({"seed": [1]}, r"seed: unknown key\. Did you mean 'seeds'"),
        ({"axes": {}}, r"axes: Dictionary should have at least 1 item"),
        ({"axes": {"e": {}}}, r"axes: axis 'e' has no options"),
        ({"axes": {"a-b": {"c": {}}}}, r"axes: 'a-b' cannot be part of a run's name"),
        (
            {"companions": ["lora"]},
            r"companions\.0: Input should be 'lora_only' or 'gaze_free', got 'lora'",
        ),
        ({"mode": "all"}, r"mode: Input should be 'one_at_a_time' or 'grid'"),
    ],
)
def test_an_invalid_sweep_file_is_refused(changes, message, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump({"name": "bad", "base": SMALL, "axes": AXES} | changes))
    with pytest.raises(RecipeError, match=message):
        load_sweep(str(file))


def test_recipes_and_sweeps_are_not_confused():
    with pytest.raises(
        RecipeError,
        match=(
            r"tabletop\.yaml is a sweep, not a recipe: `modulate sweep .*tabletop\.yaml`"
            r" runs it\."
        ),
    ):
        load_recipe(str(sweep_paths()["ablations/tabletop"]))
    with pytest.raises(RecipeError, match=r"axes: Field required"):
        load_sweep(SMALL)
    with pytest.raises(
        MissingFileError,
        match=(
            r"No sweep 'ablations/tabletp': neither a file nor a shipped sweep\. Did you mean"
            r" 'ablations/tabletop'"
        ),
    ):
        load_sweep("ablations/tabletp")


# --- those that ship


def test_sweeps_ship():
    assert {"ablations/gazeqwen", "ablations/tabletop"} <= sweep_paths().keys()


@pytest.mark.parametrize("name", sorted(sweep_paths()))
def test_a_shipped_sweep_expands_to_valid_runs_and_says_what_it_is(name):
    text = sweep_paths()[name].read_text()
    loaded = load_sweep(name)
    assert text.startswith("# ") and f"modulate sweep recipes/{name}.yaml" in text
    runs = plan_runs(loaded)
    assert runs[0].role == "base" and set(runs[0].options) == set(
        loaded.axes
    )  # every axis names what the base has
    assert {run.role for run in runs} == {"base", "variant", "lora_only", "gaze_free"}
    beside = {
        kind: {b for run in runs if run.role == kind for b in run.beside}
        for kind in ("lora_only", "gaze_free")
    }
    accompanied = ("base",) if loaded.beside == "base" else ("base", "variant")
    signal = {run.name for run in runs if run.role in accompanied}
    assert beside["gaze_free"] == signal and signal - beside["lora_only"] == {
        run.name for run in runs if run.name in signal and run.recipe.lora is None
    }


@pytest.mark.parametrize("name", sorted(sweep_paths().keys() - {"ablations/free_text"}))
def test_the_ablations_have_the_papers_axes(name):
    axes = load_sweep(name).axes
    assert set(axes["encoder"]) >= {"coord_pe", "heatmap_tau", "heatmap_dur", "coord_rel"} and set(
        axes["backbone"]
    ) == {"vjepa2_1", "dinov2"}
    assert set(axes["sharing"]) == {"per_layer", "shared"} and set(axes["adaptation"]) == {
        "lora",
        "none",
    }


def test_every_key_of_a_sweep_is_described():
    assert [name for name, info in Sweep.model_fields.items() if not info.description] == []
    assert set(Sweep.model_json_schema()["properties"]) == set(Sweep.model_fields)


def test_a_planned_run_is_a_recipe_file_that_reads_back(tmp_path):
    for run in plan_runs(sweep(companions=["lora_only", "gaze_free"])):
        (tmp_path / "run.yaml").write_text(dump(run.recipe))
        assert load_recipe(str(tmp_path / "run.yaml")) == run.recipe
