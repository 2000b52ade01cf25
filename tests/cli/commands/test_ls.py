"""`modulate ls`."""

import json
from pathlib import Path

from modulate.config.recipe import recipe_paths, shipped_paths, sweep_paths


def test_ls_lists_every_shipped_recipe_and_sweep(modulate):
    code, out, _ = modulate("ls", "--json")
    assert code == 0 and {row["name"] for row in json.loads(out)} == shipped_paths().keys()
    assert {
        row["name"] for row in json.loads(out) if row["kind"] == "sweep"
    } == sweep_paths().keys()
    assert sweep_paths().keys().isdisjoint(recipe_paths())
    assert all(row["about"] and Path(row["path"]).is_file() for row in json.loads(out))
    assert "gazeqwen_tiny  " in modulate("ls")[1]
