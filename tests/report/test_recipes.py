"""How recipes differ."""

import pytest

from modulate.config.recipe import load_recipe
from modulate.report.recipes import (
    axis_label,
    differences,
    differing_axes,
    find_base,
    format_value,
    train_alike,
)


def recipe(*overrides):
    return load_recipe("gazeqwen_tiny", list(overrides))


def test_names_seeds_and_evaluated_conditions_make_no_difference():
    other = recipe("name=other", "seed=7", "evaluation.conditions=[none]")
    assert train_alike(recipe(), other) and differences(recipe(), other) == {}


@pytest.mark.parametrize(
    "override", ["lora.rank=8", "modulator.params.latents=8", "evaluation.failed=left_out"]
)
def test_what_changes_training_or_scores_makes_a_difference(override):
    assert not train_alike(recipe(), recipe(override))


def test_another_component_is_one_difference_whatever_its_parameters():
    found = differences(recipe(), recipe("encoder={name: coord_pe, params: {dim: 64}}"))
    assert list(found) == ["encoder"] and found["encoder"][1]["name"] == "coord_pe"
    assert list(differing_axes(recipe(), recipe("modulator.params.latents=8"))) == [
        "modulator.params.latents"
    ]


def test_the_base_differs_from_most_others_in_one_axis():
    recipes = [
        recipe("lora.rank=8", "modulator.params.latents=8"),
        recipe("lora.rank=8"),
        recipe(),
        recipe("modulator.params.latents=8"),
        recipe("encoder.name=coord_pe"),
    ]
    assert find_base(recipes) == 2


def test_values_are_short():
    stage = {"train": ["modulator", "lora"], "epochs": 0.5, "lr": 3e-4}
    assert format_value([stage]) == "modulator + lora 0.5 epochs, lr 0.0003"
    assert format_value({"name": "dinov2", "params": {}}) == "dinov2"
    assert format_value({"rank": 4, "targets": ["q", "v"]}) == "rank 4, targets q, v"
    assert format_value(None) == "none" and format_value(8) == "8"
    assert axis_label("modulator.params.sharing") == "modulator: sharing"
