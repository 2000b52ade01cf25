"""`modulate cp`."""

from modulate.config.recipe import recipe_paths


def test_cp_copies_and_overwrites_only_with_force(modulate, tmp_path):
    assert modulate("cp", "gazeqwen_tiny", tmp_path)[0] == 0
    copy = tmp_path / "gazeqwen_tiny.yaml"
    assert copy.read_text() == recipe_paths()["gazeqwen_tiny"].read_text()
    code, _, err = modulate("cp", "gazeqwen_tiny", copy)
    assert code == 1
    assert err == f"Error: {copy} exists; name another file, or add --force to replace it.\n"
    assert modulate("cp", "gazeqwen_tiny", copy, "--force")[0] == 0
