"""Recipes: reading, overrides, errors, and every recipe that ships."""

import json
from pathlib import Path

import pytest
import yaml

from modulate import recipe as recipes
from modulate.errors import MissingFileError, PluginError, RecipeError

SMALL = str(Path(__file__).parent / "data" / "small.yaml")
SHIPPED = recipes.recipe_paths()


def test_recipes_ship():
    assert len(SHIPPED) > 0


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_recipe_validates_under_its_own_name_and_says_what_it_is(name):
    recipe = recipes.load_recipe(name)
    assert recipe.name == name.rpartition("/")[2]
    text = SHIPPED[name].read_text()
    assert text.startswith("# ") and f"modulate train recipes/{name}.yaml" in text


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_dumped_recipe_reads_back_as_the_same(name, tmp_path):
    recipe = recipes.load_recipe(name)
    (tmp_path / "again.yaml").write_text(recipes.dump(recipe))
    assert recipes.load_recipe(str(tmp_path / "again.yaml")) == recipe


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_the_schema_knows_every_key_of_a_shipped_recipe(name):
    schema = recipes.schema()

    def follow(value, node, path):
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        for option in node.get("anyOf", []):
            if "$ref" in option and isinstance(value, dict):
                return follow(value, option, path)
        if isinstance(value, dict) and "properties" in node:
            assert node["additionalProperties"] is False and set(node.get("required", [])) <= value.keys(), path
            for key, inner in value.items():
                assert key in node["properties"], f"{path}.{key}"
                follow(inner, node["properties"][key], f"{path}.{key}")
        if isinstance(value, list) and "items" in node:
            for i, inner in enumerate(value):
                follow(inner, node["items"], f"{path}.{i}")

    follow(yaml.safe_load(SHIPPED[name].read_text()), schema, "recipe")
    assert json.loads(json.dumps(schema)) == schema


def test_an_unknown_key_is_refused_with_near_matches():
    with pytest.raises(RecipeError, match=r"training\.batchsize: unknown key\. Did you mean 'batch_size'") as caught:
        recipes.load_recipe(SMALL, ["training.batchsize=4"])
    assert "small.yaml is not valid" in str(caught.value)


def test_an_unknown_parameter_of_a_component_is_refused():
    with pytest.raises(RecipeError, match=r"modulator\.params of gaze_resampler is not valid:\n  widht: unknown key"):
        recipes.load_recipe(SMALL, ["modulator.params.widht=4"])


def test_an_unknown_plugin_is_refused_with_near_matches():
    with pytest.raises(PluginError, match=r"Unknown signal_encoder 'cord_rel'\. Did you mean 'coord_rel'"):
        recipes.load_recipe(SMALL, ["encoder.name=cord_rel"])


def test_a_value_of_the_wrong_kind_is_refused_with_the_value():
    with pytest.raises(RecipeError, match=r"seed: Input should be a valid integer.*got 'soon'"):
        recipes.load_recipe(SMALL, ["seed=soon"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", r"Override 'seed' is not of the form key\.sub=value\."),
        ("=3", r"Override '=3' is not of the form"),
        ("training.stages.9.lr=1", r"Override 'training\.stages\.9\.lr=1' does not fit the recipe: list index out of range"),
        ("seed.sub=1", r"Override 'seed\.sub=1' does not fit the recipe"),
        ("seed=[1", r"Override 'seed=\[1' has a value that is not valid YAML"),
    ],
)
def test_a_bad_override_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        recipes.load_recipe(SMALL, [text])


def test_overrides_reach_nested_keys_list_items_and_optional_sections():
    recipe = recipes.load_recipe(SMALL, ["training.stages.0.epochs=2", "injection.layers=[2]", "lora=null", "training.stages.1.train=[modulator]"])
    assert recipe.training.stages[0].epochs == 2 and recipe.injection.layers == (2,) and recipe.lora is None


def test_training_lora_without_a_lora_section_is_refused():
    with pytest.raises(RecipeError, match="a stage trains lora, but the recipe has no `lora:` section"):
        recipes.load_recipe(SMALL, ["lora=null"])


def test_a_missing_recipe_is_refused_with_near_matches():
    with pytest.raises(MissingFileError, match=r"No recipe 'gazeqwen_tny': neither a file nor a shipped recipe\. Did you mean 'gazeqwen_tiny'"):
        recipes.load_recipe("gazeqwen_tny")


@pytest.mark.parametrize(("text", "message"), [("a: [1", "is not valid YAML"), ("- 1", "must hold a mapping of recipe keys, got list"), ("", "got NoneType")])
def test_a_file_that_is_no_recipe_is_refused(text, message, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        recipes.load_recipe(str(path))


def test_an_unknown_condition_and_an_unknown_parameter_are_errors_with_near_matches():
    with pytest.raises(RecipeError, match=r"evaluation.conditions: 'shufled' is no condition. Did you mean 'shuffled'"):
        recipes.load_recipe("gazeqwen_tiny", ["evaluation.conditions=[shufled]"])
    with pytest.raises(RecipeError, match=r"encoder.params of heatmap_dur is not valid:\n  dims: unknown key. Did you mean 'dim'"):
        recipes.load_recipe("gazeqwen_tiny", ["encoder.params={dims: 3}"])
