"""Keys of earlier versions: refused by their new name in a recipe, translated in a saved one."""

import pytest

from modulate.config.recipe import load_recipe
from modulate.config.renamed_keys import RENAMED, RENAMED_INPUT_PARAMS, new_name, translate
from modulate.config.sections import Evaluation, Features, Sampling, Training
from modulate.errors import RecipeError
from tests.paths import SMALL

SECTIONS = {
    "sampling": Sampling,
    "features": Features,
    "training": Training,
    "evaluation": Evaluation,
}


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_in_a_recipe_is_refused_with_the_new_name(old, tmp_path):
    section, _, key = old.rpartition(".")
    assert (
        RENAMED[old] in SECTIONS[section].model_fields and key not in SECTIONS[section].model_fields
    )
    with pytest.raises(RecipeError, match=f"renamed to {new_name(old)}"):
        load_recipe(SMALL, [f"{old}=1"])
    (tmp_path / "own.yaml").write_text(
        f"extends: gazeqwen_tiny\nname: own\n{section}: {{{key}: 1}}\n"
    )
    with pytest.raises(RecipeError, match=f"{old}: unknown key. It was renamed to {new_name(old)}"):
        load_recipe(str(tmp_path / "own.yaml"))


def test_a_saved_recipe_is_translated_and_nothing_else_in_it_changes():
    tree = {
        "name": "saved",
        "training": {"batch_size": 4, "together": "clip", "ahead": 2},
        "features": None,
        "evaluation": {"inputs": {"drawn": {"name": "marks", "params": {"dot_colour": [1, 2, 3]}}}},
    }
    before = repr(tree)
    assert translate(tree) == {
        "name": "saved",
        "training": {"batch_size": 4, "batch_by": "clip", "prefetch_batches": 2},
        "features": None,
        "evaluation": {"inputs": {"drawn": {"name": "marks", "params": {"dot_color": [1, 2, 3]}}}},
    }
    assert repr(tree) == before


def test_a_recipe_of_today_is_its_own_translation():
    tree = {"training": {"batch_by": "clip"}, "evaluation": {"inputs": "nonsense"}, "seed": 1}
    assert translate(tree) == tree
    both = {"training": {"together": "any", "batch_by": "clip"}}
    assert translate(both) == both  # left for the schema to refuse


def test_parameters_of_inputs_are_the_ones_that_ship():
    from modulate_gaze import inputs

    known = {name for value in vars(inputs).values() for name in getattr(value, "model_fields", {})}
    assert set(RENAMED_INPUT_PARAMS.values()) <= known
