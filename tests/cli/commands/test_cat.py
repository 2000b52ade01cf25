"""`modulate cat`."""

from modulate.config.recipe import recipe_paths, sweep_paths


def test_cat_prints_the_file_or_with_resolved_every_default(modulate):
    assert modulate("cat", "gazeqwen_tiny")[1] == recipe_paths()["gazeqwen_tiny"].read_text()
    assert (
        modulate("cat", "ablations/tabletop")[1] == sweep_paths()["ablations/tabletop"].read_text()
    )
    assert "label_smoothing: 0.0" in modulate("cat", "gazeqwen_tiny", "seed=7", "--resolved")[1]
    code, _, err = modulate("cat", "gazeqwen_tiny", "seed=7")
    assert code == 1 and "add --resolved" in err
