"""`modulate ls`, `cat` and `cp`."""

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


def test_cat_prints_the_file_or_with_resolved_every_default(modulate):
    assert modulate("cat", "gazeqwen_tiny")[1] == recipe_paths()["gazeqwen_tiny"].read_text()
    assert (
        modulate("cat", "ablations/tabletop")[1] == sweep_paths()["ablations/tabletop"].read_text()
    )
    assert "label_smoothing: 0.0" in modulate("cat", "gazeqwen_tiny", "seed=7", "--resolved")[1]
    code, _, err = modulate("cat", "gazeqwen_tiny", "seed=7")
    assert code == 1 and "add --resolved" in err


def test_cp_copies_and_overwrites_only_with_force(modulate, tmp_path):
    assert modulate("cp", "gazeqwen_tiny", tmp_path)[0] == 0
    copy = tmp_path / "gazeqwen_tiny.yaml"
    assert copy.read_text() == recipe_paths()["gazeqwen_tiny"].read_text()
    code, _, err = modulate("cp", "gazeqwen_tiny", copy)
    assert code == 1
    assert err == f"Error: {copy} exists; name another file, or add --force to replace it.\n"
    assert modulate("cp", "gazeqwen_tiny", copy, "--force")[0] == 0
