"""`modulate features`: fills the cache, says what it did, and refuses nonsense first."""

import re

from tests.paths import SMALL


def test_a_second_run_finds_what_the_first_computed(modulate, tmp_path):
    arguments = ["features", SMALL, f"data.params.root={tmp_path}/world"]
    arguments += ["--cache", tmp_path / "cache", "--split", "test"]
    code, first, err = modulate(*arguments)
    assert code == 0, err
    files = list((tmp_path / "cache").glob("*.safetensors"))
    assert files and re.search(rf"\b{len(files)}\b", first)
    times = {path: path.stat().st_mtime_ns for path in files}
    code, second, err = modulate(*arguments)
    assert code == 0 and second != first
    assert sorted((tmp_path / "cache").glob("*.safetensors")) == sorted(times)


def test_a_shard_beyond_the_last_is_refused_before_any_work(modulate, tmp_path):
    arguments = ["features", SMALL, f"data.params.root={tmp_path}/world", "--shard", "3/2"]
    code, _, err = modulate(*arguments, "--cache", tmp_path / "cache")
    assert code == 1 and err.startswith("Error: ") and not (tmp_path / "world").exists()
