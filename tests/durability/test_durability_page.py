"""The page on durability, which is generated from the recorded results."""

import subprocess
import sys

from tests.paths import ROOT


def test_the_page_is_generated_from_the_recorded_results(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    from tests.durability import __main__ as torture

    assert torture.page() == (ROOT / torture.PAGE).read_text()
    monkeypatch.setattr(torture, "RESULTS", tmp_path)
    assert torture.page().count("Not run yet.") == 3


def test_every_test_file_that_it_runs_exists(monkeypatch):
    from tests.durability import __main__ as torture

    assert (
        torture.BROKEN_FILE_TESTS
        and [name for name in torture.BROKEN_FILE_TESTS if not (ROOT / name).exists()] == []
    )


def test_its_help_says_how_long_it_takes():
    done = subprocess.run(
        [sys.executable, "-m", "tests.durability", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0 and "kills (about 8 minutes on two cores)" in done.stdout
