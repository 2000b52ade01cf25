"""The JSON Schema of recipes, against every shipped recipe."""

import json

import pytest
import yaml

from modulate.config.recipe import recipe_paths
from modulate.config.recipe_schema import schema

SHIPPED = recipe_paths()


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_the_schema_knows_every_key_of_a_shipped_recipe(name):
    tree_schema = schema()

    def follow(value, node, path):
        node = tree_schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        for option in node.get("anyOf", []):
            if "$ref" in option and isinstance(value, dict):
                return follow(value, option, path)
        if isinstance(value, dict) and "properties" in node:
            assert (
                node["additionalProperties"] is False
                and set(node.get("required", [])) <= value.keys()
            ), path
            for key, inner in value.items():
                assert key in node["properties"], f"{path}.{key}"
                follow(inner, node["properties"][key], f"{path}.{key}")
        if isinstance(value, list) and "items" in node:
            for index, inner in enumerate(value):
                follow(inner, node["items"], f"{path}.{index}")

    tree = yaml.safe_load(SHIPPED[name].read_text())
    whole, extending = tree_schema["anyOf"]
    follow(tree, extending if "extends" in tree else whole, "recipe")
    assert json.loads(json.dumps(tree_schema)) == tree_schema
