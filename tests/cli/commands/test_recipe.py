"""`modulate recipe schema`."""

import json


def test_the_schema_is_json(modulate):
    assert json.loads(modulate("recipe", "schema")[1])["title"] == "Recipe"
    assert json.loads(modulate("recipe", "schema", "--sweeps")[1])["title"] == "Sweep"
