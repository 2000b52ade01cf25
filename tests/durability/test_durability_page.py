"""The page of what was tried says what the notes beside it say."""

import subprocess
import sys

from tests.paths import ROOT


def test_the_page_is_written_from_the_notes(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    from tests.durability import __main__ as torture

    assert torture.page() == (ROOT / torture.PAGE).read_text()
    monkeypatch.setattr(torture, "KEPT", tmp_path)
    assert torture.page().count("Not run yet.") == 3


def test_every_file_of_tests_that_it_names_exists(monkeypatch):
    from tests.durability import __main__ as torture

    assert torture.BROKEN and [name for name in torture.BROKEN if not (ROOT / name).exists()] == []


def test_it_can_be_asked_what_it_does():
    done = subprocess.run(
        [sys.executable, "-m", "tests.durability", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0 and "kills (about 8 minutes on two cores)" in done.stdout
